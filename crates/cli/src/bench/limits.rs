//! What this machine can do at most, measured beside the tests.

use std::sync::Arc;

use serde::Serialize;
use zamba_kernels::cpu::{Cpu, Unit};
use zamba_kernels::{Device, Dtype};

use super::seconds;
use crate::system;

/// Bytes read per pass. Much larger than a core's share of any cache.
const MEMORY: usize = 1 << 30;
/// Passes over the memory, and calls of each unit, per measurement; the best counts.
const PASSES: usize = 6;
/// Seconds that a call of a unit takes, about.
const CALL: f64 = 0.03;

/// The best of what was measured so far.
pub(crate) struct Limits {
    cpu: Arc<Cpu>,
    /// Bytes per second.
    read: f64,
    /// Operations per second.
    units: Vec<(Unit, f64)>,
}

/// The machine and its limits, in print.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) isa: String,
    pub(crate) threads: usize,
    pub(crate) read_gbps: f64,
    pub(crate) units: Vec<Peak>,
}

/// What a unit can do, in 10^12 operations per second, two per multiply-add.
#[derive(Debug, Serialize)]
pub(crate) struct Peak {
    pub(crate) unit: String,
    pub(crate) tera_operations: f64,
}

impl Limits {
    pub(crate) fn new(cpu: Arc<Cpu>) -> Self {
        let units = cpu.units().into_iter().map(|unit| (unit, 0.0)).collect();
        Limits { cpu, read: 0.0, units }
    }

    /// Measures everything once more. The memory that is read is given back.
    pub(crate) fn measure(&mut self) {
        let mut memory = self.cpu.alloc(Dtype::F32, MEMORY / 4);
        // Pages that were never written would all be the same one.
        self.cpu.fill(&mut memory, 1.0);
        for _ in 0..PASSES {
            let mut bytes = 0;
            let time = seconds(|| bytes = self.cpu.read_bytes(&memory));
            self.read = self.read.max(bytes as f64 / time);
        }
        drop(memory);
        for (unit, best) in &mut self.units {
            let call = |rounds| {
                let mut operations = 0;
                let time = seconds(|| operations = self.cpu.operations(*unit, rounds));
                (operations as f64 / time, time)
            };
            let (_, time) = call(2000);
            let rounds = (2000.0 * CALL / time).clamp(1.0, 1e9) as usize;
            for _ in 0..PASSES {
                *best = best.max(call(rounds).0);
            }
        }
    }

    /// Bytes per second that all threads together read.
    pub(crate) fn read(&self) -> f64 {
        self.read
    }

    /// Operations per second of the best unit for matrices of type `dtype`: of f32 the multiply-adds, of quantised ones the
    /// fastest there is, else the fastest that counts in floating point.
    pub(crate) fn arithmetic(&self, dtype: Dtype) -> f64 {
        let fits = |unit: Unit| match dtype {
            Dtype::F32 => unit == Unit::Fma,
            _ => dtype.is_quantised() || unit.is_floating(),
        };
        self.units.iter().filter(|(unit, _)| fits(*unit)).map(|(_, best)| *best).fold(0.0, f64::max)
    }

    pub(crate) fn machine(&self) -> Machine {
        let peak = |(unit, best): &(Unit, f64)| Peak { unit: unit.to_string(), tera_operations: best / 1e12 };
        Machine {
            cpu: system::cpu_model(),
            isa: self.cpu.isa().to_string(),
            threads: self.cpu.threads(),
            read_gbps: self.read / 1e9,
            units: self.units.iter().map(peak).collect(),
        }
    }
}

impl Machine {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let peaks: Vec<_> =
            self.units.iter().map(|p| format!("{} {:.2} T/s", p.unit, p.tera_operations)).collect();
        let Machine { cpu, isa, threads, read_gbps, .. } = self;
        format!("{cpu}, {isa}, {threads} threads; read {read_gbps:.1} GB/s, {}", peaks.join(", "))
    }
}
