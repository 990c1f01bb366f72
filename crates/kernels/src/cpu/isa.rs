//! Which instructions the kernels are compiled for, chosen once at run time.
//!
//! Kernel bodies are written once, generic over a [`Tier`](super::tier::Tier); [`Isa::run`] enters a function
//! compiled with the features of the chosen tier, and everything below it is inlined into that function.
#![allow(unsafe_code)]

use std::fmt;

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::tier::{Op, Scalar};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

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
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
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
    use super::*;

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

    #[test]
    fn a_missing_tier_is_an_error_and_never_an_isa() {
        for name in Isa::NAMES {
            let listed = Isa::available().iter().any(|isa| isa.to_string() == name);
            assert_eq!(Isa::named(name).is_ok(), listed);
        }
    }
}
