//! Random initial weights.
//!
//! Source: `_init_weights` of `modeling_zamba.py`, transformers 5.23. Which initialisation the original
//! 7B run used is not published.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use zamba_kernels::{Device, Dtype};

use crate::config::ZambaConfig;
use crate::model::Zamba;
use crate::philox::Philox;
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
/// values do not depend on the order of tensors.
pub fn init_tensor(config: &ZambaConfig, spec: &TensorSpec, seed: u64, out: &mut Vec<f32>) {
    let mut random = Random::new(seed, &spec.name);
    out.clear();
    out.resize(spec.len(), 0.0);
    let std = config.initializer_range;
    match spec.kind {
        TensorKind::Norm | TensorKind::D => out.fill(1.0),
        TensorKind::ConvBias | TensorKind::ProjBias => {}
        TensorKind::Linear | TensorKind::Conv | TensorKind::XProj | TensorKind::Head => {
            out.fill_with(|| (random.normal() * std) as f32);
        }
        TensorKind::Embedding => {
            out.fill_with(|| (random.normal() * std) as f32);
            // `torch.nn.Embedding` zeroes the padding row.
            if let Some(pad) = config.pad_token_id {
                out[pad as usize * config.hidden_size..][..config.hidden_size].fill(0.0);
            }
        }
        TensorKind::DtProj => {
            let bound = (config.mamba_dt_rank as f64).powf(-0.5);
            out.fill_with(|| ((2.0 * random.uniform() - 1.0) * bound) as f32);
        }
        TensorKind::DtBias => {
            let (lo, hi) = (config.time_step_min.ln(), config.time_step_max.ln());
            out.fill_with(|| {
                let dt = (random.uniform() * (hi - lo) + lo).exp().max(config.time_step_floor);
                // Inverse of softplus, so that dt starts log-uniform between the two bounds.
                (dt + (-(-dt).exp_m1()).ln()) as f32
            });
        }
        TensorKind::ALog => {
            for (j, a) in out.iter_mut().enumerate() {
                *a = ((j % config.mamba_d_state + 1) as f64).ln() as f32;
            }
        }
    }
}

/// Normal and uniform numbers from one keyed stream.
struct Random {
    rng: Philox,
    spare: Option<f64>,
}

impl Random {
    fn new(seed: u64, name: &str) -> Self {
        let key = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
        let key = u64::from_le_bytes(std::array::from_fn(|j| key[j]));
        Random { rng: Philox::new(key), spare: None }
    }

    /// Uniform in `[0, 1)`.
    fn uniform(&mut self) -> f64 {
        self.rng.uniform()
    }

    /// Standard normal by Box and Muller's transform, which gives two at a time.
    fn normal(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_unit_variance_and_streams_differ_by_name() {
        let (mut a, mut b) = (Random::new(1, "a"), Random::new(1, "b"));
        let xs: Vec<f64> = (0..20_000).map(|_| a.normal()).collect();
        let mean = xs.iter().sum::<f64>() / 2e4;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 2e4;
        // Standard errors at 20,000 draws: 0.007 of the mean, 0.01 of the variance; five of each.
        assert!(mean.abs() < 0.035 && (var - 1.0).abs() < 0.05, "mean {mean}, variance {var}");
        assert_ne!(xs[0], b.normal());
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
