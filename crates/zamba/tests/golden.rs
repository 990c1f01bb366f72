//! The model against `transformers`: the golden files of `tests/peers/golden.py`, on every device.
//!
//! `ZAMBA_GOLDENS` names another folder of golden files, by which `cargo xtask peers` runs these tests on
//! larger models that it has just computed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::devices;
use safetensors::{Dtype as FileDtype, SafeTensors};
use zamba::checkpoint::{Checkpoint, LoadOptions, Weights};
use zamba::{Batch, Session, State, Workspace, Zamba};
use zamba_kernels::{Device, Dtype, IGNORE};

/// Largest difference of a logit as a fraction of the logit range. The promise is 1e-4. It is kept ten times
/// closer here because the two forms of GELU, mistaken for one another, move logits by as little as 3e-5
/// (`tests/peers/sensitivity.py` prints such figures); rounding moves them by about 1e-6.
const LOGITS: f64 = 1e-5;
/// Largest difference of a loss.
const LOSS: f64 = 1e-5;
/// Largest relative difference of a parameter's gradient, by Euclidean norm.
const GRADIENT: f64 = 1e-4;
/// Largest difference of one element of a gradient as a fraction of the largest element.
const ELEMENT: f64 = 2e-4;

fn folder() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("ZAMBA_GOLDENS").map_or(own, PathBuf::from)
}

/// Folders of models under `folder`, sorted by name.
fn models_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    all.retain(|dir| dir.join("golden.safetensors").exists());
    all.sort();
    assert!(!all.is_empty(), "{} holds no golden files", folder.display());
    all
}

/// The tensors of a `golden.safetensors`.
struct Golden(Vec<u8>);

impl Golden {
    fn open(dir: &Path) -> Self {
        Golden(fs::read(dir.join("golden.safetensors")).unwrap())
    }

    fn with<T>(&self, name: &str, dtype: FileDtype, read: impl Fn(&[u8]) -> T) -> (Vec<usize>, Vec<T>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), dtype, "{name}");
        let size = view.data().len() / view.shape().iter().product::<usize>();
        (view.shape().to_vec(), view.data().chunks_exact(size).map(read).collect())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.with(name, FileDtype::F32, |b| f32::from_le_bytes(b.try_into().unwrap())).1
    }

    /// Token ids row by row.
    fn rows(&self, name: &str) -> Vec<Vec<u32>> {
        let read = |b: &[u8]| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap();
        let (shape, ids) = self.with(name, FileDtype::I64, read);
        ids.chunks(*shape.last().unwrap()).map(<[u32]>::to_vec).collect()
    }

    fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(str::to_owned).collect()
    }
}

/// The model of a folder with f32 weights.
fn load(dir: &Path, dev: Arc<dyn Device>) -> Zamba {
    let checkpoint = Checkpoint::open(dir, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    Zamba::load(&checkpoint, dev, Some(Dtype::F32), Weights::Copy, &mut |_| {})
        .unwrap_or_else(|e| panic!("{e}"))
}

/// A batch of whole rows and, for each token, the one that follows it in its row.
fn rows_to_batch(rows: &[Vec<u32>]) -> (Batch, Vec<u32>) {
    let mut batch = Batch::default();
    let mut targets = vec![];
    for (slot, row) in rows.iter().enumerate() {
        batch.push(slot, 0, row);
        targets.extend_from_slice(&row[1..]);
        targets.push(IGNORE);
    }
    (batch, targets)
}

fn name_of(dir: &Path, dev: &Arc<dyn Device>) -> String {
    format!("{} on {}", dir.file_name().unwrap().display(), dev.name())
}

/// Fails if two lists of logits differ by more than [`LOGITS`] of the range of the expected ones.
fn assert_logits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let (low, high) = want.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    let range = f64::from(high - low);
    assert!(range > 1.0, "{what}: logits say nothing");
    let worst = got.iter().zip(want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(worst <= LOGITS * range, "{what}: logits differ by {:.2e} of their range", worst / range);
}

fn forward_logits(model: &Zamba, batch: Batch, state: Option<&mut State>) -> Vec<f32> {
    let ws = Workspace::new(model.device().clone());
    let mut ctx = ws.infer(batch, state);
    let hidden = model.forward(&mut ctx);
    let logits = model.logits(&mut ctx, &hidden);
    let mut host = vec![0.0; logits.rows() * logits.cols()];
    ctx.read(&logits, 0, &mut host);
    host
}

#[test]
fn logits_agree() {
    for dir in models_in(&folder()) {
        let golden = Golden::open(&dir);
        for dev in devices() {
            let model = load(&dir, dev.clone());
            let (batch, _) = rows_to_batch(&golden.rows("tokens"));
            let got = forward_logits(&model, batch, None);
            assert_logits(&got, &golden.floats("logits"), &name_of(&dir, &dev));
        }
    }
}

/// The same logits when each row comes in pieces, so that all three states are carried between calls.
#[test]
fn logits_agree_when_state_is_carried() {
    for dir in models_in(&folder()) {
        let golden = Golden::open(&dir);
        let rows = golden.rows("tokens");
        for dev in devices() {
            let model = load(&dir, dev.clone());
            let vocab = model.config.vocab_size;
            let mut state = State::new(&model, rows.len(), rows[0].len());
            let mut got = vec![vec![]; rows.len()];
            for (at, end) in [(0, 1), (1, 2), (2, 9), (9, 11), (11, rows[0].len())] {
                let mut batch = Batch::default();
                rows.iter().enumerate().for_each(|(slot, row)| batch.push(slot, at, &row[at..end]));
                let logits = forward_logits(&model, batch, Some(&mut state));
                let blocks = logits.chunks((end - at) * vocab);
                got.iter_mut().zip(blocks).for_each(|(row, block)| row.extend_from_slice(block));
            }
            assert_logits(&got.concat(), &golden.floats("logits"), &name_of(&dir, &dev));
        }
    }
}

#[test]
fn greedy_text_is_the_same() {
    for dir in models_in(&folder()) {
        let golden = Golden::open(&dir);
        let (prompt, want) = (golden.rows("greedy.prompt").remove(0), golden.rows("greedy.tokens").remove(0));
        assert_eq!(want.len(), 64);
        for dev in devices() {
            let model = load(&dir, dev.clone());
            let mut session = Session::new(&model, prompt.len() + want.len());
            let (mut next, mut got) = (prompt.clone(), vec![]);
            for _ in 0..want.len() {
                let logits = session.feed(&next);
                let best = logits.iter().enumerate().fold(0, |b, (i, &x)| if x > logits[b] { i } else { b });
                next = vec![best as u32];
                got.push(best as u32);
            }
            assert_eq!(got, want, "{}", name_of(&dir, &dev));
        }
    }
}

/// Loss of all predictions in f64 and the flat gradient.
fn loss_and_gradient(model: &Zamba, rows: &[Vec<u32>]) -> (f64, Vec<f32>) {
    let dev = model.device().clone();
    let (batch, targets) = rows_to_batch(rows);
    let counted = targets.iter().filter(|&&t| t != IGNORE).count();
    let ws = Workspace::new(dev.clone());
    let mut ctx = ws.train(batch, false);
    let hidden = model.forward(&mut ctx);
    let logits = model.logits(&mut ctx, &hidden);
    let nll = ctx.cross_entropy(&logits, &targets, 1.0 / counted as f32);
    let mut host = vec![0.0; targets.len()];
    ctx.read(&nll, 0, &mut host);
    let mut flat = dev.alloc(Dtype::F32, model.num_parameters());
    ctx.backward(&mut flat);
    let mut gradient = vec![0.0; flat.len()];
    dev.download(&mut gradient, &flat, 0);
    (host.iter().map(|&x| f64::from(x)).sum::<f64>() / counted as f64, gradient)
}

/// Euclidean norm, and largest absolute value, in f64.
fn norms(x: impl Iterator<Item = f64>) -> (f64, f64) {
    let (squares, largest) = x.fold((0.0, 0.0), |(s, m): (f64, f64), x| (s + x * x, m.max(x.abs())));
    (squares.sqrt(), largest)
}

#[test]
fn loss_and_every_gradient_agree() {
    for dir in models_in(&folder()) {
        let golden = Golden::open(&dir);
        for dev in devices() {
            let (model, what) = (load(&dir, dev.clone()), name_of(&dir, &dev));
            let (loss, gradient) = loss_and_gradient(&model, &golden.rows("tokens"));
            let want = f64::from(golden.floats("loss")[0]);
            assert!((loss - want).abs() <= LOSS, "{what}: loss {loss}, expected {want}");
            for (param, spec) in model.params().into_iter().zip(model.specs()) {
                let got = &gradient[param.at()..param.at() + spec.len()];
                let want = golden.floats(&format!("grad.{}", spec.name));
                assert_eq!(got.len(), want.len(), "{what}: {}", spec.name);
                let (norm, largest) = norms(want.iter().map(|&x| f64::from(x)));
                let (off, worst) = norms(got.iter().zip(&want).map(|(&a, &b)| f64::from(a) - f64::from(b)));
                assert!(norm > 0.0, "{what}: {} has no gradient", spec.name);
                assert!(
                    off <= GRADIENT * norm,
                    "{what}: gradient of {} is off by {:.1e}",
                    spec.name,
                    off / norm
                );
                assert!(
                    worst <= ELEMENT * largest,
                    "{what}: an element of the gradient of {} is off by {:.1e} of the largest",
                    spec.name,
                    worst / largest
                );
            }
        }
    }
}

/// Nothing that `transformers` trains is missing from the list of tensors, and nothing is added.
#[test]
fn list_of_parameters_is_the_same() {
    for dir in models_in(&folder()) {
        let mut want: Vec<_> = Golden::open(&dir)
            .names()
            .iter()
            .filter_map(|n| n.strip_prefix("grad.").map(str::to_owned))
            .collect();
        let config = Checkpoint::open(&dir, &LoadOptions::default()).unwrap().config;
        let mut got: Vec<_> = zamba::spec::tensors(&config).into_iter().map(|spec| spec.name).collect();
        want.sort();
        got.sort();
        assert_eq!(got, want, "{}", dir.display());
    }
}

/// Old names with gate and up swapped, shards with an index, bf16 and f16 weights.
#[test]
fn every_layout_of_a_checkpoint_is_read() {
    let layouts = models_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layouts"));
    let names: Vec<_> = layouts.iter().map(|dir| dir.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["bf16", "f16", "old", "sharded"]);
    for dir in layouts {
        let golden = Golden::open(&dir);
        for dev in devices() {
            let model = load(&dir, dev.clone());
            let (batch, _) = rows_to_batch(&golden.rows("tokens"));
            let got = forward_logits(&model, batch, None);
            assert_logits(&got, &golden.floats("logits"), &name_of(&dir, &dev));
        }
    }
}
