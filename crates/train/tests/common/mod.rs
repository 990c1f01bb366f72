//! A tiny run: model, data, recipe, and a disk in memory to have it on.
// Each test binary uses its own part.
#![allow(dead_code, unreachable_pub)]

use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use zamba_data::fs::{FaultFs, Fs};
use zamba_data::{ShardSpec, ShardWriter};
use zamba_kernels::cpu::Cpu;
use zamba_train::log::{EvalRecord, Observer, StepRecord};
use zamba_train::run::Job;
use zamba_train::{Recipe, Summary, TrainError, ckpt, train};

/// 12 steps of pretraining, 8 of annealing, two passes per step, a model of some ten thousand numbers.
pub const RECIPE: &str = r#"
seed = 1
sequence = 32
micro_batch = 2
global_batch = 4
checkpoint_every = 3
keep = 2

[model]
model_type = "zamba"
vocab_size = 64
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 4
num_attention_heads = 2
num_key_value_heads = 2
n_mamba_heads = 2
mamba_d_state = 4

[optimiser]
weight_decay = 0.1

[eval]
every = 8
shards = { held = "data/held" }

[[phase]]
name = "pretrain"
steps = 12
peak = 1e-2
warmup = 3
schedule = { kind = "cosine", end = 5e-3 }
sources = [{ name = "web", path = "data/web", weight = 1 }]

[[phase]]
name = "anneal"
steps = 8
peak = 7e-3
warmup = 2
schedule = { kind = "exponential", end = 1e-5 }
sources = [{ name = "docs", path = "data/docs", weight = 1 }]
replay = { phase = "pretrain", fraction = 0.6 }
"#;

pub fn recipe(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::parse(RECIPE, Path::new("/recipe.toml"), &sets).unwrap()
}

/// Writes `count` documents in which each token tends to follow from the one before.
pub fn write_shard(fs: &Arc<dyn Fs>, prefix: &Path, count: u64, seed: u64) {
    let spec = ShardSpec { vocab_size: 64, tokenizer_sha256: String::new() };
    let mut writer = ShardWriter::create(fs.clone(), prefix, spec).unwrap();
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |n: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % n
    };
    for _ in 0..count {
        let mut doc = vec![1];
        let mut token = 3 + random(61) as u32;
        for _ in 0..10 + random(60) {
            doc.push(token);
            token = if random(8) == 0 { 3 + random(61) as u32 } else { 3 + (token * 5 + 1) % 61 };
        }
        doc.push(2);
        writer.push(&doc, doc.len() as u64 * 3).unwrap();
    }
    writer.finish().unwrap();
}

/// When to ask the run to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    Never,
    /// When this step was logged.
    AfterStep(u64),
    /// When it was asked this many times. A step asks before it, before each of its passes, and after.
    AfterAsking(u64),
}

type OnStep = Box<dyn FnMut(&FaultFs, u64) + Send>;

/// A disk with data, and what happened on it.
pub struct World {
    pub fs: FaultFs,
    pub stop: AtomicBool,
    pub on_step: Mutex<Option<OnStep>>,
    notes: Mutex<Vec<String>>,
}

impl World {
    pub fn new() -> World {
        let world = World {
            fs: FaultFs::new(),
            stop: AtomicBool::default(),
            on_step: Mutex::new(None),
            notes: Mutex::default(),
        };
        world.write_shards(0);
        world
    }

    pub fn write_shards(&self, seed: u64) {
        let fs: Arc<dyn Fs> = Arc::new(self.fs.clone());
        fs.create_dirs(Path::new("/data")).unwrap();
        write_shard(&fs, Path::new("/data/web"), 60, 1 + seed);
        write_shard(&fs, Path::new("/data/docs"), 30, 2 + seed);
        write_shard(&fs, Path::new("/data/held"), 5, 3 + seed);
    }

    pub fn train(&self, recipe: &Recipe, resume: bool, stop: Stop) -> Result<Summary, TrainError> {
        let mut watcher = Watcher { world: self, stop };
        let asked = AtomicU64::new(0);
        let told_to_stop = || {
            let n = asked.fetch_add(1, Ordering::Relaxed) + 1;
            self.stop.load(Ordering::Relaxed) || matches!(stop, Stop::AfterAsking(k) if n >= k)
        };
        let summary = train(Job {
            recipe,
            out: Path::new("/out"),
            resume,
            fs: Arc::new(self.fs.clone()),
            device: Arc::new(Cpu::new(Some(1))),
            stop: &told_to_stop,
            observer: &mut watcher,
        });
        self.stop.store(false, Ordering::Relaxed);
        summary
    }

    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }

    pub fn lines<T: DeserializeOwned>(&self, name: &str) -> Vec<T> {
        let bytes = self.fs.read(&Path::new("/out").join(name)).unwrap();
        let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        lines.map(|l| serde_json::from_slice(l).unwrap()).collect()
    }

    pub fn log(&self) -> Vec<StepRecord> {
        self.lines("log.jsonl")
    }

    /// Steps that have checkpoints.
    pub fn steps(&self) -> Vec<u64> {
        let out = Path::new("/out");
        (0..=20).filter(|s| self.fs.exists(&ckpt::step_dir(out, *s)).unwrap()).collect()
    }

    pub fn weights(&self, step: u64) -> Vec<u8> {
        self.fs.read(&ckpt::step_dir(Path::new("/out"), step).join("model.safetensors")).unwrap()
    }

    /// Sums of every file of a checkpoint: equal sums, equal bits of all state.
    pub fn state_files(&self, step: u64) -> Vec<(String, String)> {
        let manifest = ckpt::verify(&self.fs, &ckpt::step_dir(Path::new("/out"), step)).unwrap();
        manifest.files.into_iter().map(|(name, sum)| (name, sum.sha256)).collect()
    }
}

struct Watcher<'a> {
    world: &'a World,
    stop: Stop,
}

impl Observer for Watcher<'_> {
    fn step(&mut self, record: &StepRecord, _: u64) {
        if self.stop == Stop::AfterStep(record.step) {
            self.world.stop.store(true, Ordering::Relaxed);
        }
        if let Some(f) = &mut *self.world.on_step.lock().unwrap() {
            f(&self.world.fs, record.step);
        }
    }
    fn eval(&mut self, _: &EvalRecord) {}
    fn note(&mut self, text: &str) {
        self.world.notes.lock().unwrap().push(text.to_owned());
    }
}
