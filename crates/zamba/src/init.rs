//! Random initial weights.
//!
//! Source: `_init_weights` of `modeling_zamba.py`, transformers 5.23. Which initialisation the original
//! 7B run used is not published.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};
use zamba_kernels::{Device, Dtype};

use crate::config::ZambaConfig;
use crate::model::Zamba;
use crate::philox::{Philox, TOGETHER};
use crate::spec::{TensorKind, TensorSpec};

impl Zamba {
    /// A model with random weights, a function of `config` and `seed` alone.
    pub fn random(config: ZambaConfig, dev: Arc<dyn Device>, format: Dtype, seed: u64) -> Self {
        let (c, d) = (config.clone(), dev.clone());
        let mut values = vec![];
        let built = Zamba::build(config, dev, format, |spec, buf| {
            init_tensor(&c, spec, seed, &mut values);
            d.upload(buf, 0, &values);
            Ok::<(), std::convert::Infallible>(())
        });
        match built {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }
}

/// Initial values of one tensor. Each has a random stream of its own, keyed by seed and name, so that
/// values do not depend on the order of tensors; and each value has its own place in the stream, so that all
/// processors draw at once.
pub fn init_tensor(config: &ZambaConfig, spec: &TensorSpec, seed: u64, out: &mut Vec<f32>) {
    let random = Random::new(seed, &spec.name);
    out.clear();
    out.resize(spec.len(), 0.0);
    let std = config.initializer_range;
    match spec.kind {
        TensorKind::Norm | TensorKind::D => out.fill(1.0),
        TensorKind::ConvBias | TensorKind::ProjBias => {}
        TensorKind::Linear | TensorKind::Conv | TensorKind::XProj | TensorKind::Head => {
            random.normals(out, std);
        }
        TensorKind::Embedding => {
            random.normals(out, std);
            // `torch.nn.Embedding` zeroes the padding row.
            if let Some(pad) = config.pad_token_id {
                out[pad as usize * config.hidden_size..][..config.hidden_size].fill(0.0);
            }
        }
        TensorKind::DtProj => {
            let bound = (config.mamba_dt_rank as f64).powf(-0.5);
            random.each(out, |draws, out| {
                for (x, draw) in out.iter_mut().zip(draws) {
                    *x = ((2.0 * draw - 1.0) * bound) as f32;
                }
            });
        }
        TensorKind::DtBias => {
            let (lo, hi) = (config.time_step_min.ln(), config.time_step_max.ln());
            random.each(out, |draws, out| {
                for (x, draw) in out.iter_mut().zip(draws) {
                    let dt = (draw * (hi - lo) + lo).exp().max(config.time_step_floor);
                    // Inverse of softplus, so that dt starts log-uniform between the two bounds.
                    *x = (dt + (-(-dt).exp_m1()).ln()) as f32;
                }
            });
        }
        TensorKind::ALog => {
            for (j, a) in out.iter_mut().enumerate() {
                *a = ((j % config.mamba_d_state + 1) as f64).ln() as f32;
            }
        }
    }
}

/// Values per thread and turn; a multiple of those that are drawn together.
const PART: usize = 1 << 16;

/// Calls `fill` with every part of `out` and the place of its first value, on all processors if there are
/// several parts.
fn in_parallel(out: &mut [f32], fill: impl Fn(usize, &mut [f32]) + Sync) {
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(out.len().div_ceil(PART));
    let parts = Mutex::new(out.chunks_mut(PART).enumerate());
    let work = || {
        loop {
            let part = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, part)) = part else { return };
            fill(index * PART, part);
        }
    };
    thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
}

/// Normal and uniform numbers from one keyed stream, by their place in it.
#[derive(Clone, Copy)]
struct Random {
    rng: Philox,
}

impl Random {
    fn new(seed: u64, name: &str) -> Self {
        let key = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
        let key = u64::from_le_bytes(std::array::from_fn(|j| key[j]));
        Random { rng: Philox::new(key) }
    }

    /// Calls `fill` with all values of `out`, a few at a time, and as many uniform draws in `[0, 1)` as there
    /// are values, or more at the end.
    fn each(&self, out: &mut [f32], fill: impl Fn([f64; TOGETHER], &mut [f32]) + Sync) {
        in_parallel(out, |at, out| {
            for (index, out) in out.chunks_mut(TOGETHER).enumerate() {
                fill(self.rng.uniforms((at + index * TOGETHER) as u64), out);
            }
        });
    }

    /// Standard normal numbers times `std` by Box and Muller's transform, which gives two for two draws.
    fn normals(&self, out: &mut [f32], std: f64) {
        self.each(out, |draws, out| {
            for (out, [a, b]) in out.chunks_mut(2).zip(draws.as_chunks().0) {
                let radius = (-2.0 * (1.0 - a).ln()).sqrt();
                let (sin, cos) = (std::f64::consts::TAU * b).sin_cos();
                for (out, x) in out.iter_mut().zip([radius * cos, radius * sin]) {
                    *out = (x * std) as f32;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_unit_variance_and_streams_differ_by_name() {
        let draw = |name| {
            let mut xs = vec![0.0; 20_001];
            Random::new(1, name).normals(&mut xs, 1.0);
            xs
        };
        let xs = draw("a");
        let mean = xs.iter().sum::<f32>() / 2e4;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 2e4;
        // Standard errors at 20,000 draws: 0.007 of the mean, 0.01 of the variance; five of each.
        assert!(mean.abs() < 0.035 && (var - 1.0).abs() < 0.05, "mean {mean}, variance {var}");
        assert_ne!(xs, draw("b"));
    }

    /// Tensors of several parts and odd sizes are drawn as one value after the other would be.
    #[test]
    fn parts_leave_no_trace() {
        let len = 4 * PART + 1;
        let (mut normals, random) = (vec![0.0; len], Random::new(9, "x"));
        random.normals(&mut normals, 2.0);
        let mut rng = random.rng;
        for pair in normals.chunks(2) {
            let radius = (-2.0 * (1.0 - rng.uniform()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * rng.uniform()).sin_cos();
            let expected = [(radius * cos * 2.0) as f32, (radius * sin * 2.0) as f32];
            assert_eq!(pair, &expected[..pair.len()]);
        }
        let config = ZambaConfig::preset("tiny").unwrap();
        let spec = TensorSpec { name: "x".into(), shape: vec![300_001], kind: TensorKind::DtProj };
        let mut out = vec![];
        init_tensor(&config, &spec, 9, &mut out);
        // Weights of a seed stay what they are: this sum is of those that were drawn first.
        assert_eq!(out.iter().fold(0u32, |sum, x| sum.rotate_left(5) ^ x.to_bits()), 0xc851_3d8f);
    }

    #[test]
    fn dt_bias_starts_between_the_time_steps() {
        let config = ZambaConfig::preset("tiny").unwrap();
        let specs = crate::spec::tensors(&config);
        let spec = specs.iter().find(|s| s.kind == TensorKind::DtBias).unwrap();
        let mut out = vec![];
        init_tensor(&config, spec, 3, &mut out);
        for b in out {
            let dt = f64::from(b).exp().ln_1p();
            assert!(dt >= config.time_step_min * 0.999 && dt <= config.time_step_max * 1.001, "dt {dt}");
        }
    }
}
