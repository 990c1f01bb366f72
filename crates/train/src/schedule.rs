//! Learning rates: a warm-up, then a shape, per phase.
//!
//! Steps of a phase count from 0. During a warm-up of `w` steps the rate rises linearly from `from` so
//! that step `w - 1` runs at the peak: `from + (peak - from) * (s + 1) / w`. After it, the shape is a
//! function of `t = s - w` over `T = steps - w`, with eta(0) = peak and eta(T) = end, where `t = T` would be
//! the step after the last, as in PyTorch's schedulers. A following phase may start from that value.
//!
//! The shapes:
//!
//! * `constant`: peak.
//! * `linear`: a straight line from peak to end.
//! * `cosine`: `end + (peak - end) * (1 + cos(pi t / T)) / 2` (`torch.optim.lr_scheduler.CosineAnnealingLR`).
//! * `exponential`: `a exp(-t / (gamma T)) + b`, with a and b fixed by the two ends. Zamba's annealing
//!   (arXiv 2405.16712, section II-C) is described as an exponential decay to 1e-7 with gamma 0.25;
//!   its formula is not published, so this one is a reconstruction and not verified against their run.
//! * `wsd` (warm-up, stable, decay): peak, and over the last `decay` steps down to end along `1 - sqrt`
//!   (arXiv 2405.18392 and llm.c), a line or a cosine.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Shape {
    /// Stays at the peak.
    Constant,
    /// Straight to `end`.
    Linear {
        /// Rate at the end of the phase.
        end: f64,
    },
    /// Half a cosine to `end`.
    Cosine {
        /// Rate at the end of the phase.
        end: f64,
    },
    /// Exponential to `end`.
    Exponential {
        /// Rate at the end of the phase.
        end: f64,
        /// Time constant as a fraction of the decay.
        #[serde(default = "paper_gamma")]
        gamma: f64,
    },
    /// Stays at the peak, then decays.
    Wsd {
        /// Rate at the end of the phase.
        end: f64,
        /// Steps of the decay.
        decay: u64,
        /// Form of the decay.
        #[serde(default)]
        form: Decay,
    },
}

/// Time constant that the paper names for its annealing.
fn paper_gamma() -> f64 {
    0.25
}

/// Form of the decay of [`Shape::Wsd`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// `1 - sqrt(t / T)`
    #[default]
    OneMinusSqrt,
    /// `1 - t / T`
    Linear,
    /// `(1 + cos(pi t / T)) / 2`
    Cosine,
}

/// Where a warm-up starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// At zero.
    #[default]
    Zero,
    /// Where the phase before ended; zero for the first phase.
    Previous,
}

/// The learning rate over one phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps of the phase.
    pub steps: u64,
    /// Highest rate.
    pub peak: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Rate that the warm-up starts above.
    pub from: f64,
    /// What follows.
    pub shape: Shape,
}

impl Schedule {
    /// Rate of step `s` of the phase, from 0; `s >= steps` gives the rate at its end.
    pub fn at(&self, s: u64) -> f64 {
        if s < self.warmup {
            return self.from + (self.peak - self.from) * (s + 1) as f64 / self.warmup as f64;
        }
        let total = self.steps.saturating_sub(self.warmup);
        let t = (s - self.warmup).min(total);
        self.shape.at(self.peak, t, total)
    }
}

impl Shape {
    /// Rate `t` steps into the `total` steps after the warm-up.
    fn at(self, peak: f64, t: u64, total: u64) -> f64 {
        let x = if total == 0 { 1.0 } else { t as f64 / total as f64 };
        match self {
            Shape::Constant => peak,
            Shape::Linear { end } => mix(peak, end, 1.0 - x),
            Shape::Cosine { end } => mix(peak, end, (1.0 + (PI * x).cos()) / 2.0),
            Shape::Exponential { end, gamma } => {
                let last = (-1.0 / gamma).exp();
                mix(peak, end, ((-x / gamma).exp() - last) / (1.0 - last))
            }
            Shape::Wsd { end, decay, form } => {
                let decay = decay.min(total);
                let into = t.saturating_sub(total - decay);
                if into == 0 {
                    return peak;
                }
                let x = into as f64 / decay as f64;
                let left = match form {
                    Decay::OneMinusSqrt => 1.0 - x.sqrt(),
                    Decay::Linear => 1.0 - x,
                    Decay::Cosine => (1.0 + (PI * x).cos()) / 2.0,
                };
                mix(peak, end, left)
            }
        }
    }
}

/// `end` plus the part `left` of the way back to `peak`.
fn mix(peak: f64, end: f64, left: f64) -> f64 {
    end + (peak - end) * left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> Schedule {
        Schedule { steps: 110, peak: 1.5e-4, warmup: 10, from: 0.0, shape }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1e-6), "{a} {b}");
    }

    #[test]
    fn warm_up_rises_to_the_peak_and_shapes_end_at_their_end() {
        let end = 7.5e-5;
        for shape in [
            Shape::Linear { end },
            Shape::Cosine { end },
            Shape::Exponential { end, gamma: 0.25 },
            Shape::Wsd { end, decay: 30, form: Decay::OneMinusSqrt },
            Shape::Wsd { end, decay: 30, form: Decay::Linear },
            Shape::Wsd { end, decay: 30, form: Decay::Cosine },
        ] {
            let s = schedule(shape);
            close(s.at(0), 1.5e-5);
            close(s.at(4), 7.5e-5);
            close(s.at(9), 1.5e-4);
            close(s.at(10), 1.5e-4);
            close(s.at(110), end);
            close(s.at(1000), end);
            for t in 10..110 {
                assert!(s.at(t + 1) <= s.at(t), "{shape:?} rises at {t}");
            }
        }
        close(schedule(Shape::Constant).at(110), 1.5e-4);
    }

    #[test]
    fn re_warming_starts_above_the_given_rate() {
        let s = Schedule { from: 5e-5, ..schedule(Shape::Constant) };
        close(s.at(0), 5e-5 + 1e-5);
        close(s.at(9), 1.5e-4);
    }

    #[test]
    fn no_warm_up_starts_at_the_peak() {
        close(Schedule { warmup: 0, ..schedule(Shape::Linear { end: 0.0 }) }.at(0), 1.5e-4);
    }

    /// Peak 1.5e-4, 100 steps, values of `torch.optim.lr_scheduler` of PyTorch at t = 0, 1, 25, 50, 99, 100:
    /// `CosineAnnealingLR(T_max=100, eta_min=7.5e-5)` and `LinearLR(start_factor=1, end_factor=0.5,
    /// total_iters=100)` over an optimiser in f64.
    #[test]
    fn cosine_and_linear_agree_with_pytorch() {
        let at = [0, 1, 25, 50, 99, 100];
        let cosine = [
            0.00015,
            0.00014998149601371492,
            0.00013901650429449554,
            0.0001125,
            7.501850398628506e-05,
            7.5e-05,
        ];
        let linear = [
            0.00015,
            0.00014925,
            0.00013125000000000005,
            0.00011250000000000006,
            7.575000000000007e-05,
            7.500000000000006e-05,
        ];
        for (i, t) in at.into_iter().enumerate() {
            let s = Schedule { steps: 100, warmup: 0, ..schedule(Shape::Cosine { end: 7.5e-5 }) };
            assert!((s.at(t) / cosine[i] - 1.0).abs() < 1e-12, "{} {}", s.at(t), cosine[i]);
            let s = Schedule { shape: Shape::Linear { end: 7.5e-5 }, ..s };
            assert!((s.at(t) / linear[i] - 1.0).abs() < 1e-12, "{} {}", s.at(t), linear[i]);
        }
    }

    /// a = 1.1195e-4 and b = -1.950e-6 solve eta(0) = 1.1e-4, eta(T) = 1e-7 at gamma 0.25 to four digits.
    #[test]
    fn exponential_is_the_reconstruction_of_the_papers_annealing() {
        let (a, b) = (1.1195e-4, -1.950e-6);
        let shape = Shape::Exponential { end: 1e-7, gamma: 0.25 };
        let s = Schedule { steps: 1000, peak: 1.1e-4, warmup: 0, from: 0.0, shape };
        for t in [0, 100, 250, 500, 900, 1000] {
            let want = a * (-(t as f64) / 250.0).exp() + b;
            assert!((s.at(t) - want).abs() < 5e-9, "{t}: {} {want}", s.at(t));
        }
        close(s.at(0), 1.1e-4);
        close(s.at(1000), 1e-7);
    }

    #[test]
    fn wsd_holds_then_falls_along_one_minus_sqrt() {
        let shape = Shape::Wsd { end: 0.0, decay: 20, form: Decay::OneMinusSqrt };
        let s = Schedule { steps: 100, peak: 1.0, warmup: 0, from: 0.0, shape };
        close(s.at(80), 1.0);
        close(s.at(85), 0.5);
        close(s.at(81), 1.0 - 0.05f64.sqrt());
        let s = Schedule { shape: Shape::Wsd { end: 0.1, decay: 20, form: Decay::Linear }, ..s };
        close(s.at(90), 0.55);
    }
}
