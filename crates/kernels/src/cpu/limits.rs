//! What the machine can do at most: loops that keep one unit busy and nothing else.
//!
//! A caller takes the time, because nothing in this crate reads a clock. Speeds of kernels are given as shares
//! of these limits, measured in the same run.
#![allow(unsafe_code)]

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::tier::{self, LANES, Op, Tier, V};
use super::{Cpu, Isa};
use crate::{Buf, Device};

/// A unit of the processor that multiplies and adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Multiply-adds of f32 vectors.
    Fma,
    /// Dots of pairs of bf16 in f32, `VDPBF16PS`.
    Bf16Dot,
    /// Dots of four bytes in i32, `VPDPBUSD`.
    Int8Dot,
    /// Products of tiles of bf16 in f32, `TDPBF16PS`.
    Bf16Tile,
}

impl Unit {
    /// Whether it counts in floating point.
    pub fn is_floating(self) -> bool {
        self != Unit::Int8Dot
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::Fma => "f32 multiply-adds",
            Unit::Bf16Dot => "bf16 dots",
            Unit::Int8Dot => "int8 dots",
            Unit::Bf16Tile => "bf16 tiles",
        })
    }
}

impl Cpu {
    /// The units that this tier can use on this machine, in the order of [`Unit`].
    pub fn units(&self) -> Vec<Unit> {
        let mut units = vec![Unit::Fma];
        units.extend(dots::bf16(self.isa).map(|_| Unit::Bf16Dot));
        units.extend(dots::int8(self.isa).map(|_| Unit::Int8Dot));
        #[cfg(target_arch = "x86_64")]
        units.extend(self.isa.amx().map(|_| Unit::Bf16Tile));
        units
    }

    /// Keeps `unit` of every thread busy for `rounds` of its loop, from registers. Returns the number of
    /// operations, two per multiply-add: the most that kernels could do in the time that the call takes.
    ///
    /// # Panics
    /// If [`Cpu::units`] does not name the unit.
    pub fn operations(&self, unit: Unit, rounds: usize) -> u64 {
        match unit {
            Unit::Fma => self.multiply_adds(rounds),
            Unit::Bf16Dot => self.dots(dots::bf16(self.isa), rounds, 4 * LANES),
            Unit::Int8Dot => self.dots(dots::int8(self.isa), rounds, 8 * LANES),
            Unit::Bf16Tile => self.tiles(rounds),
        }
    }

    /// Does `rounds` multiply-adds in each lane of some registers on every thread, and nothing else. Returns
    /// the number of floating-point operations, two per multiply-add: the most that kernels of this tier in
    /// f32 could do in the time that the call takes.
    pub fn multiply_adds(&self, rounds: usize) -> u64 {
        self.on_all_threads(|| self.isa.run(MultiplyAdds(rounds)))
    }

    /// Reads every line of `memory` once, each thread a share of its own from end to end. Returns the bytes
    /// read. To measure memory and not caches, `memory` is much larger than them, 1 GiB or more, and was
    /// written before: pages that never were are all one page of zeros.
    ///
    /// # Panics
    /// If the elements are not f32.
    pub fn read_bytes(&self, memory: &Buf) -> u64 {
        let values = memory.f32();
        // Whole lines, and at least one.
        let share = values.len().div_ceil(self.threads()).next_multiple_of(LANES).max(LANES);
        let shares = values.len().div_ceil(share);
        self.pool.run(shares, |index| {
            let from = index * share;
            let to = values.len().min(from + share);
            black_box(self.isa.run(Read(&values[from..to])));
        });
        memory.bytes() as u64
    }

    fn dots(&self, run: Option<dots::Loop>, rounds: usize, each: usize) -> u64 {
        let run = run.expect("this tier has no such unit");
        self.on_all_threads(|| {
            run.run(rounds);
            (rounds * dots::SUMS * each) as u64
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn tiles(&self, rounds: usize) -> u64 {
        let amx = self.isa.amx().expect("this tier has no such unit");
        // Numbers of either sign with all bits in use, as those of a model have.
        let number = |i: u32| half::bf16::from_f32((i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-7 - 0.8);
        let x: Vec<_> = (0..(2 * amx::SIDE * amx::STEP) as u32).map(number).collect();
        self.on_all_threads(|| amx::Tiles::new(amx, amx::SIDE).spin_bf16(&x, rounds))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn tiles(&self, _: usize) -> u64 {
        panic!("this tier has no such unit")
    }

    /// Runs `body` in several chunks per thread, so that a thread that starts late does not leave others
    /// idle, and adds up what it returns.
    fn on_all_threads(&self, body: impl Fn() -> u64 + Sync) -> u64 {
        let done = AtomicU64::new(0);
        self.pool.run(16 * self.threads(), |_| {
            done.fetch_add(body(), Ordering::Relaxed);
        });
        done.into_inner()
    }
}

/// The loop of [`Cpu::multiply_adds`].
struct MultiplyAdds(usize);

impl Op for MultiplyAdds {
    type Out = u64;
    #[inline(always)]
    fn eval<S: Tier>(self) -> u64 {
        // As many sums as registers have room for and latency asks for; a narrow vector is two registers.
        const SUMS: usize = 12;
        let used = if S::WIDE { SUMS } else { SUMS / 2 };
        let mut sums = [V::<S>::splat(0.5); SUMS];
        let (a, b) = (V::splat(black_box(0.999)), V::splat(1e-3));
        for _ in 0..self.0 {
            for sum in &mut sums[..used] {
                *sum = sum.fma(a, b);
            }
        }
        for sum in &sums[..used] {
            black_box(sum.lanes());
        }
        (2 * self.0 * used * tier::LANES) as u64
    }
}

/// The loop of [`Cpu::read_bytes`]: the sum of the values, which nobody needs.
struct Read<'a>(&'a [f32]);

impl Op for Read<'_> {
    type Out = [f32; LANES];
    #[inline(always)]
    fn eval<S: Tier>(self) -> [f32; LANES] {
        const LINES: usize = 8;
        let mut sums = [V::<S>::zero(); LINES];
        let (lines, rest) = self.0.as_chunks::<LANES>();
        let (blocks, lines) = lines.as_chunks::<LINES>();
        for block in blocks {
            for l in 0..LINES {
                sums[l] = sums[l] + V::of(&block[l]);
            }
        }
        for line in lines {
            sums[0] = sums[0] + V::of(line);
        }
        sums[1] = sums[1] + V::load_part(rest);
        let mut sum = sums[0];
        for other in &sums[1..] {
            sum = sum + *other;
        }
        sum.lanes()
    }
}

/// Loops over dot instructions, which not every machine with the tier's other instructions has.
#[cfg(target_arch = "x86_64")]
mod dots {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Isa;

    /// As many sums as the latency of a dot asks for, and two units.
    pub(super) const SUMS: usize = 12;

    /// A loop that this machine has the instructions for: only [`bf16()`] and [`int8()`] make one, after they
    /// have found them.
    #[derive(Clone, Copy)]
    pub(super) struct Loop(unsafe fn(usize));

    impl Loop {
        pub(super) fn run(self, rounds: usize) {
            // SAFETY: the makers of a `Loop` found the features named on its function.
            unsafe { (self.0)(rounds) }
        }
    }

    /// Whether the tier may use instructions beyond AVX-512's first.
    fn wide(isa: Isa) -> bool {
        is_x86_feature_detected!("avx512f") && isa >= Isa::named("avx512").unwrap_or(isa)
    }

    pub(super) fn bf16(isa: Isa) -> Option<Loop> {
        (wide(isa) && is_x86_feature_detected!("avx512bf16")).then_some(Loop(run_bf16))
    }

    pub(super) fn int8(isa: Isa) -> Option<Loop> {
        (wide(isa) && is_x86_feature_detected!("avx512vnni")).then_some(Loop(run_int8))
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn run_bf16(rounds: usize) {
        // Pairs of small numbers, so that no sum grows beyond all bounds or becomes denormal.
        let bits = _mm512_set1_epi32(black_box(0x3c00_3c00));
        // SAFETY: both types are 64 bytes without rules on their content.
        let x: __m512bh = unsafe { std::mem::transmute(bits) };
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn run_int8(rounds: usize) {
        let x = _mm512_set1_epi8(black_box(1));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod dots {
    use super::Isa;

    pub(super) const SUMS: usize = 1;

    /// There is none.
    pub(super) enum Loop {}

    impl Loop {
        pub(super) fn run(self, _: usize) {
            match self {}
        }
    }

    pub(super) fn bf16(_: Isa) -> Option<Loop> {
        None
    }

    pub(super) fn int8(_: Isa) -> Option<Loop> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    #[cfg_attr(miri, ignore = "millions of operations")]
    fn every_unit_of_every_tier_counts_what_it_does() {
        for isa in Isa::available() {
            let cpu = Cpu::with(isa, 2);
            for unit in cpu.units() {
                let (one, two) = (cpu.operations(unit, 10), cpu.operations(unit, 20));
                assert!(one > 0 && two == 2 * one, "{unit} on {isa}: {one}, {two}");
            }
        }
    }

    #[test]
    fn all_of_the_memory_is_read() {
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cpu = Cpu::with(isa, threads);
                for len in [0, 1, 15, 16, 1000, 4099] {
                    let mut memory = cpu.alloc(Dtype::F32, len);
                    cpu.fill(&mut memory, 1.0);
                    assert_eq!(cpu.read_bytes(&memory), 4 * len as u64);
                }
            }
            let ones = [1.0; 1003];
            assert_eq!(isa.run(Read(&ones)).iter().sum::<f32>(), 1003.0);
        }
    }
}
