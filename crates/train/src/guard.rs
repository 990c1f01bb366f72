//! Guards in front of the update: numbers that are not finite, and spikes.
//!
//! A spike is a value more than `spike_sigmas` standard deviations above the mean of the last
//! `spike_window` *good* values of the loss or of the gradient norm. Bad values never enter the window,
//! so that one NaN cannot blind it and a burst of spikes cannot become the new normal. The figures in
//! use elsewhere are six deviations over 128 steps (OLMo-core's `SkipStepOptimizer`).

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Settings of a [`Guard`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// Steps skipped one after the other before the run stops.
    pub max_consecutive_skips: u64,
    /// Good values that the mean and the deviation are taken over; 0 turns the spike guard off.
    pub spike_window: usize,
    /// Standard deviations above the mean from which a value is a spike.
    pub spike_sigmas: f64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        GuardConfig { max_consecutive_skips: 5, spike_window: 128, spike_sigmas: 6.0 }
    }
}

/// Why a step is skipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skip {
    /// The loss is NaN or infinite.
    LossNotFinite,
    /// The norm of the gradients is NaN or infinite.
    GradNotFinite,
    /// The loss lies this many standard deviations above the mean.
    LossSpike(f64),
    /// The norm of the gradients lies this many standard deviations above the mean.
    GradSpike(f64),
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Skip::LossNotFinite => f.write_str("the loss is not finite"),
            Skip::GradNotFinite => f.write_str("the gradient norm is not finite"),
            Skip::LossSpike(z) => write!(f, "the loss is {z:.1} standard deviations above its recent mean"),
            Skip::GradSpike(z) => {
                write!(f, "the gradient norm is {z:.1} standard deviations above its recent mean")
            }
        }
    }
}

/// The memory of the guards; part of the state of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    losses: VecDeque<f64>,
    norms: VecDeque<f64>,
    /// Steps skipped since the last good one.
    pub consecutive_skips: u64,
    /// Steps skipped since the run began.
    pub skipped: u64,
}

impl Guard {
    /// Judges a step before its update. `Err` says why the update must not be made.
    ///
    /// # Errors
    /// The reason to skip.
    pub fn judge(&mut self, config: &GuardConfig, loss: f64, grad_norm: f64) -> Result<(), Skip> {
        let verdict = self.look(config, loss, grad_norm);
        match verdict {
            Ok(()) => {
                self.consecutive_skips = 0;
                push(&mut self.losses, loss, config.spike_window);
                push(&mut self.norms, grad_norm, config.spike_window);
            }
            Err(_) => {
                self.consecutive_skips += 1;
                self.skipped += 1;
            }
        }
        verdict
    }

    fn look(&self, config: &GuardConfig, loss: f64, grad_norm: f64) -> Result<(), Skip> {
        if !loss.is_finite() {
            return Err(Skip::LossNotFinite);
        }
        if !grad_norm.is_finite() {
            return Err(Skip::GradNotFinite);
        }
        let z = score(&self.losses, config, loss);
        if z > config.spike_sigmas {
            return Err(Skip::LossSpike(z));
        }
        let z = score(&self.norms, config, grad_norm);
        if z > config.spike_sigmas {
            return Err(Skip::GradSpike(z));
        }
        Ok(())
    }

    /// Forgets the window, for a new phase whose losses are of another kind.
    pub fn forget(&mut self) {
        self.losses.clear();
        self.norms.clear();
    }

    /// Whether so many steps in a row were skipped that the run must stop.
    pub fn must_stop(&self, config: &GuardConfig) -> bool {
        self.consecutive_skips >= config.max_consecutive_skips.max(1)
    }
}

fn push(window: &mut VecDeque<f64>, value: f64, size: usize) {
    window.push_back(value);
    while window.len() > size {
        window.pop_front();
    }
}

/// Standard deviations of `value` above the mean of a full window; 0 until it is full.
fn score(window: &VecDeque<f64>, config: &GuardConfig, value: f64) -> f64 {
    let n = window.len();
    if config.spike_window < 2 || n < config.spike_window {
        return 0.0;
    }
    let mean = window.iter().sum::<f64>() / n as f64;
    let variance = window.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1) as f64;
    if variance > 0.0 { (value - mean) / variance.sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(config: &GuardConfig) -> Guard {
        let mut guard = Guard::default();
        for i in 0..config.spike_window {
            guard.judge(config, 3.0 + 0.01 * (i % 3) as f64, 1.0 + 0.01 * (i % 2) as f64).unwrap();
        }
        guard
    }

    #[test]
    fn bad_numbers_are_refused_and_leave_the_window_alone() {
        let config = GuardConfig { spike_window: 8, ..GuardConfig::default() };
        for (loss, norm, why) in [
            (f64::NAN, 1.0, Skip::LossNotFinite),
            (f64::INFINITY, 1.0, Skip::LossNotFinite),
            (3.0, f64::NAN, Skip::GradNotFinite),
            (3.0, f64::INFINITY, Skip::GradNotFinite),
        ] {
            let mut guard = warm(&config);
            let before = (guard.losses.clone(), guard.norms.clone());
            assert_eq!(guard.judge(&config, loss, norm), Err(why));
            assert_eq!((guard.losses.clone(), guard.norms.clone()), before);
            guard.judge(&config, 3.0, 1.0).unwrap();
            assert!(matches!(guard.judge(&config, 9.0, 1.0), Err(Skip::LossSpike(z)) if z > 6.0));
            assert!(matches!(guard.judge(&config, 3.0, 9.0), Err(Skip::GradSpike(_))));
            assert_eq!(guard.consecutive_skips, 2);
            guard.judge(&config, 3.0, 1.0).unwrap();
            assert_eq!((guard.consecutive_skips, guard.skipped), (0, 3));
        }
    }

    #[test]
    fn no_spike_before_the_window_is_full_nor_for_low_values() {
        let config = GuardConfig { spike_window: 8, ..GuardConfig::default() };
        let mut guard = Guard::default();
        for _ in 0..7 {
            guard.judge(&config, 3.0, 1.0).unwrap();
        }
        guard.judge(&config, 100.0, 1.0).unwrap();
        warm(&config).judge(&config, 0.1, 0.1).unwrap();
        let off = GuardConfig { spike_window: 0, ..config };
        let mut guard = Guard::default();
        for loss in [1.0, 1.0, 1e9] {
            guard.judge(&off, loss, 1.0).unwrap();
        }
    }

    #[test]
    fn stops_after_so_many_in_a_row() {
        let config = GuardConfig { max_consecutive_skips: 3, ..GuardConfig::default() };
        let mut guard = Guard::default();
        for i in 0..3 {
            assert!(!guard.must_stop(&config), "{i}");
            guard.judge(&config, f64::NAN, 1.0).unwrap_err();
        }
        assert!(guard.must_stop(&config));
        guard.judge(&config, 1.0, 1.0).unwrap();
        assert!(!guard.must_stop(&config));
    }

    #[test]
    fn its_memory_survives_json_bit_for_bit() {
        let config = GuardConfig::default();
        let mut guard = Guard::default();
        for i in 0..20 {
            guard.judge(&config, (i as f64).sqrt() / 3.0, (i as f64).exp2().ln_1p()).unwrap();
        }
        let json = serde_json::to_string(&guard).unwrap();
        assert_eq!(serde_json::from_str::<Guard>(&json).unwrap(), guard);
    }
}
