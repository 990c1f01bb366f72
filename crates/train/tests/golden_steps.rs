//! Training against PyTorch: ten AdamW steps of every golden model, through the whole production loop.
//!
//! Recipe, shards, order of the data, packing, gradient accumulation, clipping, weight decay, resume and
//! checkpoints all stand between the golden files and the losses that are compared. `ZAMBA_GOLDENS` names
//! another folder of golden files than the committed one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype as FileDtype, SafeTensors};
use zamba::checkpoint::{Checkpoint, LoadOptions};
use zamba::spec::{TensorSpec, tensors};
use zamba_data::fs::{FaultFs, Fs};
use zamba_data::{Mixture, PhaseSpec, ShardSpec, ShardWriter, Source, SourceWeight};
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::reference::Reference;
use zamba_kernels::{Buf, Device};
use zamba_train::log::{EvalRecord, Observer, StepRecord};
use zamba_train::state::{Context, RunState};
use zamba_train::{Job, Recipe, Summary, ckpt, train};

/// Largest difference of the loss of any of the ten steps.
const LOSS: f64 = 1e-4;
/// Largest relative difference of the norm before clipping, in the first step. Later norms are no measure: where
/// a token comes to lie at the kink of a ReLU, rounding decides whether its gradient is there at all.
const NORM: f64 = 1e-4;
/// Largest difference of a tensor's norm after the steps, relative to it. Leaving out weight decay, or applying
/// it where it does not belong, changes a norm by 1e-3; rounding, by 2e-6.
const WEIGHTS: f64 = 2e-5;
/// Largest difference of a tensor's sum after the steps, relative to its norm. AdamW moves an element whose
/// gradient is nothing but rounding by up to 1e-3 either way in each step.
const SUMS: f64 = 5e-4;
const ROWS_PER_STEP: usize = 2;
const SEED: u64 = 5;
/// Folder of each run on its disk in memory.
const HOME: &str = "/run";

/// Folders of models with training steps.
fn models() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../zamba/tests/golden");
    let folder = std::env::var_os("ZAMBA_GOLDENS").map_or(own, PathBuf::from);
    let mut all: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|dir| fs::read(dir.join("golden.safetensors")).is_ok_and(|file| has_steps(&file)));
    all.sort();
    // Larger models with ReLU have none, because rounding decides on which side of its kink a token lies.
    assert!(all.len() >= 12, "{} holds training steps of {} models only", folder.display(), all.len());
    all
}

fn has_steps(golden: &[u8]) -> bool {
    SafeTensors::deserialize(golden).unwrap().tensor("steps.loss").is_ok()
}

fn devices() -> Vec<Arc<dyn Device>> {
    let mut all: Vec<Arc<dyn Device>> = vec![Arc::new(Reference::new())];
    all.extend(Isa::available().into_iter().map(|isa| Arc::new(Cpu::with(isa, 2)) as Arc<dyn Device>));
    all
}

/// What PyTorch did.
struct Golden {
    rows: Vec<Vec<u32>>,
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// Sum and norm of each parameter in the end, by sorted names.
    last: Vec<[f64; 2]>,
}

impl Golden {
    fn open(dir: &Path) -> Golden {
        let bytes = fs::read(dir.join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f64> {
            let view = file.tensor(name).unwrap();
            match view.dtype() {
                FileDtype::F32 => view
                    .data()
                    .chunks(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                FileDtype::F64 => {
                    view.data().chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
                }
                other => panic!("{name} is {other:?}"),
            }
        };
        let tokens = file.tensor("steps.tokens").unwrap();
        let ids: Vec<u32> =
            tokens.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
        let rows: Vec<_> = ids.chunks(tokens.shape()[2]).map(<[u32]>::to_vec).collect();
        assert_eq!(rows.len(), 10 * ROWS_PER_STEP);
        let last = floats("steps.final").chunks(2).map(|x| [x[0], x[1]]).collect();
        Golden { rows, losses: floats("steps.loss"), norms: floats("steps.grad_norm"), last }
    }
}

/// Writes `rows` as documents of one shard.
fn write_shard(fs: &Arc<dyn Fs>, prefix: &Path, rows: &[&Vec<u32>], vocab_size: usize) {
    let spec = ShardSpec { vocab_size: vocab_size as u32, tokenizer_sha256: String::new() };
    let mut writer = ShardWriter::create(fs.clone(), prefix, spec).unwrap();
    rows.iter().for_each(|row| writer.push(row, 1).unwrap());
    writer.finish().unwrap();
}

/// Which document sample `i` shows, when there are `rows.len()` documents that fill a row each. The order of
/// a source depends on the seed and on how many documents there are, not on what they say.
fn order(fs: &Arc<dyn Fs>, rows: &[Vec<u32>], vocab_size: usize) -> Vec<usize> {
    let prefix = Path::new(HOME).join("any");
    write_shard(fs, &prefix, &rows.iter().collect::<Vec<_>>(), vocab_size);
    let source = Source::open(fs, "text", &[prefix]).unwrap();
    let phase = PhaseSpec {
        name: "only".into(),
        samples: rows.len() as u64,
        sources: vec![SourceWeight { source: "text".into(), weight: 1.0, max_epochs: None }],
        replay: None,
    };
    let mixture = Mixture::new(vec![source], &[phase], SEED, rows[0].len()).unwrap();
    (0..rows.len() as u64).map(|i| mixture.pieces(0, i).1[0].doc as usize).collect()
}

fn recipe(length: usize, micro_batch: usize) -> String {
    format!(
        "seed = {SEED}\nmodel = \"config.json\"\nsequence = {length}\nmicro_batch = {micro_batch}\n\
         global_batch = {ROWS_PER_STEP}\ncheckpoint_every = 100\n\
         optimiser = {{ beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0 }}\n\
         guard = {{ spike_window = 0 }}\n\
         [[phase]]\nname = \"only\"\nsteps = 10\npeak = 1e-3\nschedule = {{ kind = \"constant\" }}\n\
         sources = [{{ name = \"text\", paths = \"text\", weight = 1.0 }}]\n",
    )
}

/// Keeps what a run says.
#[derive(Default)]
struct Heard {
    steps: Vec<StepRecord>,
}

impl Observer for Heard {
    fn step(&mut self, record: &StepRecord, _: u64) {
        self.steps.push(record.clone());
    }
    fn eval(&mut self, _: &EvalRecord) {}
    fn note(&mut self, _: &str) {}
}

/// The flat weights of a folder, in the order of `specs`.
fn weights_of(dir: &Path, specs: &[TensorSpec]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(dir, &LoadOptions::default()).unwrap();
    let mut flat = vec![];
    for spec in specs {
        let mut values = vec![0.0; spec.len()];
        checkpoint.read_f32(&spec.name, 0, &mut values).unwrap();
        flat.extend(values);
    }
    flat
}

/// One golden model in a scratch folder, ready to be trained.
struct Bench {
    fs: Arc<dyn Fs>,
    recipe: Recipe,
    specs: Vec<TensorSpec>,
    device: Arc<dyn Device>,
}

impl Bench {
    fn new(dir: &Path, golden: &Golden, device: Arc<dyn Device>, micro_batch: usize) -> Bench {
        // A disk in memory: no fault is planned here, and a real one would be synced hundreds of times.
        let fs: Arc<dyn Fs> = Arc::new(FaultFs::new());
        fs.create_dirs(Path::new(HOME)).unwrap();
        let config = Checkpoint::open(dir, &LoadOptions::default()).unwrap().config;
        let order = order(&fs, &golden.rows, config.vocab_size);
        let mut documents = golden.rows.iter().collect::<Vec<_>>();
        order.iter().zip(&golden.rows).for_each(|(&doc, row)| documents[doc] = row);
        write_shard(&fs, &Path::new(HOME).join("text"), &documents, config.vocab_size);
        fs.write(&Path::new(HOME).join("config.json"), &fs::read(dir.join("config.json")).unwrap()).unwrap();
        let path = Path::new(HOME).join("run.toml");
        fs.write(&path, recipe(golden.rows[0].len(), micro_batch).as_bytes()).unwrap();
        let recipe = Recipe::load(&*fs, &path, &[]).unwrap();
        Bench { fs, recipe, specs: tensors(&config), device }
    }

    fn out(&self) -> PathBuf {
        Path::new(HOME).join("out")
    }

    fn train(&self, resume: bool, stop: bool) -> (Summary, Vec<StepRecord>) {
        let (mut heard, out) = (Heard::default(), self.out());
        let job = Job {
            recipe: &self.recipe,
            out: &out,
            resume,
            fs: self.fs.clone(),
            device: self.device.clone(),
            stop: &|| stop,
            observer: &mut heard,
        };
        let summary = train(job).unwrap_or_else(|e| panic!("{e}"));
        (summary, heard.steps)
    }

    /// Leaves a checkpoint of step 0 with the given weights, from which a run can be resumed.
    fn start_from(&self, weights: &[f32]) {
        self.train(false, true);
        let out = self.out();
        let (dir, manifest) = ckpt::newest(&*self.fs, &out, &mut |_| {}).unwrap().unwrap();
        assert_eq!(manifest.head.step, 0);
        let config = self.recipe.model_config(&*self.fs).unwrap();
        let (mut state, trajectory) =
            RunState::load(&*self.fs, &dir, &manifest, &config, &*self.device).unwrap();
        self.device.upload(&mut state.weights, 0, weights);
        let context = Context { config: &config, trajectory: &trajectory, files: &[], head: manifest.head };
        let snapshot = state.snapshot(&*self.device, context);
        self.fs.remove_tree(&dir).unwrap();
        ckpt::save(&*self.fs, &out, snapshot).unwrap();
    }

    /// Name, sum and norm of each tensor of the newest checkpoint's master weights, sorted by name.
    fn last_weights(&self) -> Vec<(String, [f64; 2])> {
        let (dir, manifest) = ckpt::newest(&*self.fs, &self.out(), &mut |_| {}).unwrap().unwrap();
        assert_eq!(manifest.head.step, 10);
        let config = self.recipe.model_config(&*self.fs).unwrap();
        let (state, _) = RunState::load(&*self.fs, &dir, &manifest, &config, &*self.device).unwrap();
        let flat = host(&*self.device, &state.weights);
        let mut at = 0;
        let mut all: Vec<_> = self
            .specs
            .iter()
            .map(|spec| {
                let part = &flat[at..at + spec.len()];
                at += spec.len();
                let sum = part.iter().map(|&x| f64::from(x)).sum();
                let norm = part.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                (spec.name.clone(), [sum, norm])
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

fn host(device: &dyn Device, buf: &Buf) -> Vec<f32> {
    let mut values = vec![0.0; buf.len()];
    device.download(&mut values, buf, 0);
    values
}

#[test]
fn ten_steps_have_the_losses_of_pytorch() {
    for dir in models() {
        let golden = Golden::open(&dir);
        for (i, device) in devices().into_iter().enumerate() {
            // Whole steps and accumulated ones in turn.
            let micro_batch = ROWS_PER_STEP - i % 2;
            let what = format!("{} on {}", dir.file_name().unwrap().display(), device.name());
            let bench = Bench::new(&dir, &golden, device, micro_batch);
            bench.start_from(&weights_of(&dir, &bench.specs));
            let (_, steps) = bench.train(true, false);
            assert_eq!(steps.len(), 10, "{what}");
            for (step, loss) in steps.iter().zip(&golden.losses) {
                let (n, got) = (step.step, step.loss);
                assert!((got - loss).abs() <= LOSS, "{what}: step {n}: loss {got}, expected {loss}");
            }
            let (got, want) = (steps[0].grad_norm, golden.norms[0]);
            assert!((got - want).abs() <= NORM * want, "{what}: norm {got}, expected {want}");
            let last = bench.last_weights();
            assert_eq!(last.len(), golden.last.len(), "{what}");
            for ((name, [sum, norm]), [want_sum, want_norm]) in last.iter().zip(&golden.last) {
                let (norm_off, sum_off) =
                    ((norm - want_norm).abs() / want_norm, (sum - want_sum).abs() / want_norm);
                assert!(norm_off <= WEIGHTS, "{what}: the norm of {name} ends off by {norm_off:.1e}");
                assert!(sum_off <= SUMS, "{what}: the sum of {name} ends off by {sum_off:.1e}");
            }
        }
    }
}
