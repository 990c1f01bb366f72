//! `kill -9` at random moments, half of them in a save, on a real disk.
//!
//! The run happens in a child: this very test binary, told by an environment variable to be one. After
//! each kill the newest checkpoint must verify and must not be older than the newest one before, and a
//! run that was killed again and again must end with the same bits as one that never was.

mod common;

use common::{RECIPE, write_shard};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zamba::checkpoint::{Checkpoint, LoadOptions};
use zamba_data::fs::{Fs, RealFs};
use zamba_kernels::cpu::Cpu;
use zamba_train::log::{Silent, StepRecord};
use zamba_train::{Job, Recipe, ckpt, train};

const CHILD: &str = "ZAMBA_TEST_KILL_CHILD";
const KILLS: usize = 100;
const STEPS: u64 = 60;

fn run(dir: &Path, out: &Path) {
    let sets = ["checkpoint_every=1", "phase.pretrain.steps=40", "phase.anneal.steps=20", "eval.every=1000"];
    let sets = sets.map(str::to_owned);
    let recipe = Recipe::parse(RECIPE, &dir.join("recipe.toml"), &sets).unwrap();
    let job = Job {
        recipe: &recipe,
        out,
        resume: true,
        fs: Arc::new(RealFs),
        device: Arc::new(Cpu::new(Some(1))),
        stop: &|| false,
        observer: &mut Silent,
    };
    assert_eq!(train(job).unwrap().step, STEPS);
}

/// Does nothing unless it is the child.
#[test]
fn child() {
    if let Ok(dir) = std::env::var(CHILD) {
        run(Path::new(&dir), &Path::new(&dir).join("out"));
    }
}

/// Kills the child if the test panics, so that nothing is left running.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(dir: &Path) -> Reaped {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Reaped(child)
}

fn saving(out: &Path) -> bool {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    entries.into_iter().any(|e| e.file_name().to_string_lossy().contains(".tmp-"))
}

fn newest(out: &Path) -> Option<u64> {
    let found =
        ckpt::newest(&RealFs, out, &mut |text| panic!("a kill damaged a checkpoint: {text}")).unwrap();
    found.map(|(_, manifest)| manifest.head.step)
}

fn sums(out: &Path) -> Vec<(String, String)> {
    let manifest = ckpt::verify(&RealFs, &ckpt::step_dir(out, STEPS)).unwrap();
    manifest.files.into_iter().map(|(name, sum)| (name, sum.sha256)).collect()
}

/// Every command that takes a model takes a checkpoint of a run, and finds a flipped bit in it.
fn is_a_model_folder(dir: &Path, what: &str) {
    let open = || Checkpoint::open(dir, &LoadOptions::default());
    open().unwrap_or_else(|e| panic!("{what}: {e}"));
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(open().is_err(), "{what}: a flipped bit passes");
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Lets the child run for a while and kills it. `None` if it came to its end before.
fn let_run_and_kill(child: &mut Reaped, out: &Path, in_save: bool, random: &mut Random) -> Option<bool> {
    let begun = Instant::now();
    let patience = Duration::from_micros(random.below(250_000));
    while begun.elapsed() < patience || (in_save && !saving(out)) {
        if let Some(status) = child.0.try_wait().unwrap() {
            assert!(status.success(), "the child failed by itself");
            return None;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the child hangs");
        std::thread::sleep(Duration::from_micros(200));
    }
    if in_save {
        std::thread::sleep(Duration::from_micros(random.below(4000)));
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    Some(saving(out))
}

#[test]
fn killed_a_hundred_times_it_ends_with_the_same_bits() {
    let temp = tempfile::tempdir().unwrap();
    let dir: PathBuf = temp.path().to_owned();
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    fs.create_dirs(&dir.join("data")).unwrap();
    for (seed, name) in ["web", "docs", "held"].into_iter().enumerate() {
        write_shard(&fs, &dir.join("data").join(name), 60, seed as u64 + 1);
    }
    run(&dir, &dir.join("whole"));
    let want = sums(&dir.join("whole"));
    is_a_model_folder(&ckpt::step_dir(&dir.join("whole"), 40), "pretraining's end");
    is_a_model_folder(&ckpt::step_dir(&dir.join("whole"), STEPS), "the end");

    let out = dir.join("out");
    let mut random = Random(7);
    let (mut kills, mut in_saves, mut ends, mut best) = (0, 0, 0, None);
    while kills < KILLS || in_saves < KILLS / 2 || ends == 0 {
        assert!(kills < 4 * KILLS, "{kills} kills, {in_saves} in a save, {ends} ends: too few in saves");
        let mut child = spawn(&dir);
        // Once there were kills enough, the run is let to its end.
        let killed = if kills >= KILLS && in_saves >= KILLS / 2 {
            assert!(child.0.wait().unwrap().success());
            None
        } else {
            let_run_and_kill(&mut child, &out, kills % 2 == 0, &mut random)
        };
        let Some(in_save) = killed else {
            assert_eq!(sums(&out), want, "after {kills} kills");
            let log = String::from_utf8(fs.read(&out.join("log.jsonl")).unwrap()).unwrap();
            let steps = log.lines().map(|l| serde_json::from_str::<StepRecord>(l).unwrap().step);
            assert!(steps.eq(1..=STEPS), "the log lacks or repeats a step");
            assert!(!saving(&out), "an unfinished save is left lying about");
            let latest = fs.read(&out.join(ckpt::LATEST)).unwrap();
            assert_eq!(latest, format!("step-{STEPS}\n").into_bytes());
            fs.remove_tree(&out).unwrap();
            (ends, best) = (ends + 1, None);
            continue;
        };
        kills += 1;
        in_saves += usize::from(in_save);
        let now = newest(&out);
        assert!(now >= best, "kill {kills}: step {now:?} is older than {best:?}");
        best = now;
    }
    println!("{kills} kills, {in_saves} of them in a save, {ends} runs to the end");
}
