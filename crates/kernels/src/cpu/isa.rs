//! Which instructions the kernels are compiled for, chosen once at run time.
//!
//! Kernel bodies are written once, generic over a [`Tier`](super::tier::Tier); [`Isa::run`] enters a function
//! compiled with the features of the chosen tier, and everything below it is inlined into that function.
#![allow(unsafe_code)]

use std::fmt;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::int::IntOp;
use super::tier::{Op, Scalar};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use super::x86_int::Vnni;

/// A set of instructions that this machine has.
///
/// The field is private: holding an `Isa` proves that its features were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Scalar,
    Avx2,
    Avx512,
    Amx,
}

const LEVELS: [Level; 4] = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Amx];

/// Why a tier cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No tier has this name.
    #[error("unknown instruction set {0:?}: choose one of scalar, avx2, avx512, amx")]
    Unknown(String),
    /// The machine lacks the features of the tier.
    #[error("this machine lacks the {0} instruction set: choose one of {1}")]
    Missing(&'static str, String),
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn found(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        match self {
            Level::Scalar => true,
            Level::Avx2 => avx2,
            Level::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Level::Amx => Level::Avx512.found() && Amx::detect().is_some(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn found(self) -> bool {
        self == Level::Scalar
    }
}

impl Isa {
    /// The names of all tiers, slowest first, whether this machine has them or not.
    pub const NAMES: [&'static str; 4] = ["scalar", "avx2", "avx512", "amx"];

    /// The fastest tier of this machine.
    pub fn detect() -> Isa {
        LEVELS.into_iter().rev().find(|l| l.found()).map_or(Isa(Level::Scalar), Isa)
    }

    /// Every tier of this machine, slowest first. Tests and benches loop over it.
    pub fn available() -> Vec<Isa> {
        LEVELS.into_iter().filter(|l| l.found()).map(Isa).collect()
    }

    /// The tier called `name`.
    ///
    /// # Errors
    /// If there is no such tier, or the machine lacks its features.
    pub fn named(name: &str) -> Result<Isa, IsaError> {
        let level = LEVELS.into_iter().find(|l| l.name() == name);
        let level = level.ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        if level.found() {
            return Ok(Isa(level));
        }
        let names: Vec<_> = Isa::available().iter().map(|isa| isa.0.name()).collect();
        Err(IsaError::Missing(level.name(), names.join(", ")))
    }

    /// The tile instructions, if this tier has them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn amx(self) -> Option<Amx> {
        if self.0 == Level::Amx { Amx::detect() } else { None }
    }

    /// Runs `op` compiled for this tier.
    #[inline]
    pub(super) fn run<O: Op>(self, op: O) -> O::Out {
        match self.0 {
            Level::Scalar => op.eval::<Scalar>(),
            // SAFETY: the only makers of an `Isa` put a level in it after `found` said that the machine
            // has the features named on the function.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { run_avx2(op) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => unsafe { run_avx512(op) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => op.eval::<Scalar>(),
        }
    }

    /// Runs `op` on integers compiled for this tier.
    #[inline]
    pub(super) fn run_int<O: IntOp>(self, op: O) -> O::Out {
        match self.0 {
            Level::Scalar => op.eval::<Scalar>(),
            // SAFETY: as in `run`.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { int_avx2(op) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => {
                if is_x86_feature_detected!("avx512vnni") {
                    // SAFETY: as in `run`, and the one feature more was found just now.
                    unsafe { int_vnni(op) }
                } else {
                    // SAFETY: as in `run`.
                    unsafe { int_avx512(op) }
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => op.eval::<Scalar>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn int_avx2<O: IntOp>(op: O) -> O::Out {
    op.eval::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn int_avx512<O: IntOp>(op: O) -> O::Out {
    op.eval::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn int_vnni<O: IntOp>(op: O) -> O::Out {
    op.eval::<Vnni>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<O: Op>(op: O) -> O::Out {
    op.eval::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<O: Op>(op: O) -> O::Out {
    op.eval::<Avx512>()
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

#[cfg(test)]
mod tests {
    use super::super::int::IntTier;
    use super::super::tier::V;
    use super::*;
    use crate::quant::{GROUP, LINE};

    #[test]
    fn names_and_display_agree() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(&isa.to_string()), Ok(isa));
            assert!(Isa::NAMES.contains(&isa.to_string().as_str()));
        }
        assert!(Isa::available().contains(&Isa::detect()));
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = Isa::named("sse9").unwrap_err().to_string();
        assert!(message.contains("sse9") && Isa::NAMES.iter().all(|n| message.contains(n)), "{message}");
    }

    /// Dot products of many lines with activations, as floats, and quantised activations.
    struct Dots;

    impl IntOp for Dots {
        type Out = Vec<f32>;
        #[inline(always)]
        fn eval<S: IntTier>(self) -> Vec<f32> {
            let mut out = vec![];
            for seed in 0..100 {
                let (mut bytes, mut x) = ([0; LINE], [0.0; GROUP]);
                for j in 0..LINE {
                    // Never 0, as in a file, and often the extremes.
                    bytes[j] = ((j * 37 + seed * 101) % 300).clamp(1, 255) as u8;
                }
                for j in 0..GROUP {
                    x[j] = ((j * 29 + seed * 53) % 100) as f32 - 50.5;
                }
                let mut q = [0; GROUP];
                let (scale, sum) = S::quantise(&x, &mut q);
                out.extend([scale, sum as f32]);
                out.extend(q.map(f32::from));
                let q = [q[seed % 60], -127, 127, q[1]];
                let total: i32 = q.iter().map(|q| i32::from(*q)).sum();
                let start = if S::SIGNED_8 { 0 } else { -128 * total };
                let (low, high) = S::lines4(&bytes);
                let sums = [
                    S::dot8(S::start(start), S::line8(&bytes), q),
                    S::dot4(S::start(1), low, q),
                    S::dot4(S::start(2), high, q),
                ];
                for sum in sums {
                    out.extend(V::<S::F>::wrap(S::float(sum)).lanes());
                }
            }
            out
        }
    }

    #[test]
    fn integers_are_the_same_on_every_tier() {
        let want = Isa(Level::Scalar).run_int(Dots);
        for isa in Isa::available() {
            assert!(isa.run_int(Dots) == want, "{isa}");
        }
        #[cfg(target_arch = "x86_64")]
        if Level::Avx512.found() {
            // SAFETY: the features were found. This is what a machine without VNNI runs.
            assert!(unsafe { int_avx512(Dots) } == want, "avx512 without vnni");
        }
    }

    #[test]
    fn a_missing_tier_is_an_error_and_never_an_isa() {
        for name in Isa::NAMES {
            let listed = Isa::available().iter().any(|isa| isa.to_string() == name);
            assert_eq!(Isa::named(name).is_ok(), listed);
        }
    }
}
