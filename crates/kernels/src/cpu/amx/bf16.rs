//! Products of tiles of bf16, with sums in f32.
#![allow(unsafe_code)]

use std::arch::asm;

use half::bf16;

use super::{A, Ahead, B, C, LINE, SIDE, STEP, Spread, Start, Tiles};

/// Where the tiles of a product lie, in bytes.
struct Loop {
    a: [*const u8; 2],
    b: [*const u8; 2],
    rows: [*const u8; 2],
    run: *const u8,
    a_row: usize,
    a_step: usize,
    b_row: usize,
    b_step: usize,
    steps: usize,
}

/// The given instructions once per step.
macro_rules! steps {
    ($l:expr, $($line:expr),+ $(,)?) => {
        asm!(
            "2:",
            $($line,)+
            "prefetcht1 [{p0}]",
            "prefetcht1 [{p1}]",
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {b0}, {b_step}",
            "add {b1}, {b_step}",
            "prefetcht1 [{p2}]",
            "prefetcht1 [{p2} + 64]",
            "add {p0}, 64",
            "add {p1}, 64",
            "add {p2}, 128",
            "dec {count}",
            "jnz 2b",
            a0 = inout(reg) $l.a[0] => _,
            a1 = inout(reg) $l.a[1] => _,
            b0 = inout(reg) $l.b[0] => _,
            b1 = inout(reg) $l.b[1] => _,
            p0 = inout(reg) $l.rows[0] => _,
            p1 = inout(reg) $l.rows[1] => _,
            p2 = inout(reg) $l.run => _,
            count = inout(reg) $l.steps => _,
            a_row = in(reg) $l.a_row,
            a_step = in(reg) $l.a_step,
            b_row = in(reg) $l.b_row,
            b_step = in(reg) $l.b_step,
            options(nostack),
        )
    };
}

/// A tile of C to or from memory.
macro_rules! c_tile {
    ("load", $tile:literal, $at:expr, $row:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{c} + {row}]"), c = in(reg) $at, row = in(reg) $row, options(nostack))
    };
    ("store", $tile:literal, $at:expr, $row:expr) => {
        asm!(concat!("tilestored [{c} + {row}], tmm", $tile), c = in(reg) $at, row = in(reg) $row, options(nostack))
    };
}

impl Tiles {
    /// Products of `M` tiles of A and `N` of B, in bf16 with sums in f32, over `steps` steps of [`STEP`].
    ///
    /// `c` receives the `M * N` tiles of C, each `[16, columns]`, those of one tile of A together.
    ///
    /// # Panics
    /// If a slice is too short, or there is no step.
    #[inline]
    pub(in crate::cpu) fn product_bf16<'s, const M: usize, const N: usize>(
        &self,
        c: &mut [f32],
        a: A,
        b: B,
        steps: usize,
        start: impl Into<Start<'s>>,
        ahead: Ahead,
    ) {
        const { assert!(M >= 1 && M <= 2 && N >= 1 && N <= 2) }
        let size = SIDE * self.columns;
        assert!(steps > 0 && c.len() >= M * N * size, "tiles of C");
        assert!(a.end(M, steps, STEP) <= a.x.len(), "tiles of A");
        assert!((N - 1) * b.tile + steps * 2 * size <= b.x.len(), "tiles of B");
        let tiles = [0, size, N * size, 3 * size];
        let c = c.as_mut_ptr();
        let c = tiles.map(|at| c.wrapping_add(at));
        let start = match start.into() {
            Start::Zero => None,
            Start::Own => Some(c.map(<*mut f32>::cast_const)),
            Start::From(before) => {
                assert!(before.len() >= M * N * size, "tiles of C");
                Some(tiles.map(|at| before.as_ptr().wrapping_add(at)))
            }
        };
        let b = Spread { x: b.x, tile: b.tile, step: 2 * size };
        // SAFETY: each tile of C is `size` numbers within `c`, tile `(1, 0)` being the one after the `N` of
        // the first row; those of A and B lie within their slices, as asserted above.
        unsafe { self.raw_bf16::<M, N>(c, start, a, b, steps, ahead) }
    }

    /// The same with tiles `(0, 0)`, `(0, 1)`, `(1, 0)` and `(1, 1)` of C at `c`, to start from those at
    /// `start` or from zero.
    ///
    /// # Safety
    /// Each of the `M * N` tiles of C is 16 times `columns` numbers that may be written, or read. Tiles of A and B lie
    /// within their slices, and there is a step.
    #[inline]
    unsafe fn raw_bf16<const M: usize, const N: usize>(
        &self,
        c: [*mut f32; 4],
        start: Option<[*const f32; 4]>,
        a: A,
        b: Spread,
        steps: usize,
        ahead: Ahead,
    ) {
        let row = 4 * self.columns;
        let (a0, b0) = (a.x.as_ptr(), b.x.as_ptr());
        let a1 = if M == 2 { a0.wrapping_add(a.tile) } else { a0 };
        let b1 = if N == 2 { b0.wrapping_add(b.tile) } else { b0 };
        let l = Loop {
            a: [a0.cast(), a1.cast()],
            b: [b0.cast(), b1.cast()],
            rows: ahead.rows.map(<*const bf16>::cast),
            run: ahead.run.cast(),
            a_row: a.row * size_of::<bf16>(),
            a_step: a.step * size_of::<bf16>(),
            b_row: row,
            b_step: b.step * size_of::<bf16>(),
            steps,
        };
        // SAFETY: `self` says that the tiles are configured for `columns`; the caller vouches for all memory
        // but that of prefetches, which do not fault, whatever their address.
        unsafe {
            if let Some(start) = start {
                c_tile!("load", "0", start[0], row);
                if N == 2 {
                    c_tile!("load", "1", start[1], row);
                }
                if M == 2 {
                    c_tile!("load", "2", start[2], row);
                }
                if M * N == 4 {
                    c_tile!("load", "3", start[3], row);
                }
            } else {
                asm!("tilezero tmm0", options(nostack, nomem));
                if N == 2 {
                    asm!("tilezero tmm1", options(nostack, nomem));
                }
                if M == 2 {
                    asm!("tilezero tmm2", options(nostack, nomem));
                }
                if M * N == 4 {
                    asm!("tilezero tmm3", options(nostack, nomem));
                }
            }
            match (M, N) {
                (1, 1) => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                ),
                (1, 2) => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {b_row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                ),
                (2, 1) => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a1} + {a_row}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                ),
                _ => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {b_row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {a_row}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                ),
            }
            c_tile!("store", "0", c[0], row);
            if N == 2 {
                c_tile!("store", "1", c[1], row);
            }
            if M == 2 {
                c_tile!("store", "2", c[2], row);
            }
            if M * N == 4 {
                c_tile!("store", "3", c[3], row);
            }
        }
    }
}

/// One step of two by two tiles of bf16, in three parts: before the products with tile 0, 1, and 2 and 3 of C. Tiles of
/// B pass once per panel of A and are asked for as what the first-level cache need not keep.
macro_rules! square_step {
    (0) => {
        concat!("tileloadd tmm4, [{a0} + {a_row}]", "\n", "tileloaddt1 tmm6, [{b0} + {b_row}]")
    };
    (1) => {
        concat!("tdpbf16ps tmm0, tmm4, tmm6", "\n", "tileloaddt1 tmm7, [{b1} + {b_row}]")
    };
    (2) => {
        concat!("tdpbf16ps tmm1, tmm4, tmm7", "\n", "tileloadd tmm5, [{a1} + {a_row}]")
    };
    (3) => {
        concat!("tdpbf16ps tmm2, tmm5, tmm6", "\n", "tdpbf16ps tmm3, tmm5, tmm7")
    };
}

impl Tiles {
    /// Adds two tiles of A times each pair of tiles of B to sums: `c` is `[pairs][2 of A][2 of B][16, 16]`. With
    /// `first` they start from zero. The same numbers as [`Tiles::product_bf16`] of each pair gives.
    ///
    /// Sums that go to memory and come back are what holds such a loop back, so those of one pair are written while
    /// the next pair's first products run, and read after lines of them were fetched in the steps before.
    ///
    /// # Panics
    /// If a slice is too short, tiles have not 16 columns, or there is no step.
    pub(in crate::cpu) fn sums_bf16(
        &self,
        c: &mut [f32],
        a: A,
        b: B,
        steps: usize,
        first: bool,
        ahead: impl Fn(usize) -> Ahead,
    ) {
        const SIZE: usize = SIDE * SIDE;
        let (pairs, rest) = c.as_chunks_mut::<{ 4 * SIZE }>();
        assert!(rest.is_empty() && self.columns == SIDE && steps > 0, "pairs of tiles of C");
        assert!(a.end(2, steps, STEP) <= a.x.len(), "tiles of A");
        assert!(
            pairs.is_empty() || (2 * pairs.len() - 1) * b.tile + steps * 2 * SIZE <= b.x.len(),
            "tiles of B"
        );
        let mut before: Option<*mut f32> = None;
        for (n, c) in pairs.iter_mut().enumerate() {
            let (c, ahead) = (c.as_mut_ptr(), ahead(n));
            let b0 = b.x.as_ptr().wrapping_add(2 * n * b.tile);
            let l = Loop {
                a: [a.x.as_ptr().cast(), a.x.as_ptr().wrapping_add(a.tile).cast()],
                b: [b0.cast(), b0.wrapping_add(b.tile).cast()],
                rows: ahead.rows.map(<*const bf16>::cast),
                run: ahead.run.cast(),
                a_row: a.row * size_of::<bf16>(),
                a_step: a.step * size_of::<bf16>(),
                b_row: LINE,
                b_step: 4 * SIZE,
                steps,
            };
            // SAFETY: `self` says that the tiles are configured, for 16 columns as asserted. Tiles of A and B lie
            // within their slices, as asserted; those of C are the chunk, and those at `before` the chunk that the last round
            // had, which nothing has touched since.
            unsafe { self.square(c, before, first, l) }
            before = Some(c);
        }
        if let Some(c) = before {
            // SAFETY: as above.
            unsafe {
                c_tile!("store", "0", c, LINE);
                c_tile!("store", "1", c.add(SIZE), LINE);
                c_tile!("store", "2", c.add(2 * SIZE), LINE);
                c_tile!("store", "3", c.add(3 * SIZE), LINE);
            }
        }
    }

    /// Writes the tiles of C to `before` if that is given, and starts them anew: from zero with `first`, else from `c`. Then
    /// adds the products of all steps and leaves them in the tiles.
    ///
    /// # Safety
    /// `before` and `c` are 4 tiles of C that may be written and read; those of `l` may be read; there is a step.
    #[inline]
    unsafe fn square(&self, c: *mut f32, before: Option<*mut f32>, first: bool, l: Loop) {
        macro_rules! turn {
            ($tile:literal, $at:expr) => {
                if let Some(before) = before {
                    c_tile!("store", $tile, before.wrapping_add($at * SIDE * SIDE), LINE);
                }
                if first {
                    asm!(concat!("tilezero tmm", $tile), options(nostack, nomem));
                } else {
                    c_tile!("load", $tile, c.wrapping_add($at * SIDE * SIDE), LINE);
                }
            };
        }
        // SAFETY: the caller vouches for all memory but that of prefetches, which do not fault.
        unsafe {
            asm!(
                square_step!(0),
                a0 = in(reg) l.a[0],
                b0 = in(reg) l.b[0],
                a_row = in(reg) l.a_row,
                b_row = in(reg) l.b_row,
                options(nostack),
            );
            turn!("0", 0);
            asm!(square_step!(1), b1 = in(reg) l.b[1], b_row = in(reg) l.b_row, options(nostack));
            turn!("1", 1);
            asm!(square_step!(2), a1 = in(reg) l.a[1], a_row = in(reg) l.a_row, options(nostack));
            turn!("2", 2);
            turn!("3", 3);
            asm!(
                "2:",
                square_step!(3),
                "prefetcht1 [{p0}]",
                "prefetcht1 [{p1}]",
                "add {a0}, {a_step}",
                "add {a1}, {a_step}",
                "add {b0}, {b_step}",
                "add {b1}, {b_step}",
                "prefetcht1 [{p2}]",
                "prefetcht1 [{p2} + 64]",
                "add {p0}, 64",
                "add {p1}, 64",
                "add {p2}, 128",
                "prefetcht0 [{c}]",
                "prefetcht0 [{c} + 64]",
                "prefetcht0 [{c} + 128]",
                "prefetcht0 [{c} + 192]",
                "prefetcht0 [{c} + 256]",
                "prefetcht0 [{c} + 320]",
                "prefetcht0 [{c} + 384]",
                "prefetcht0 [{c} + 448]",
                "add {c}, 512",
                "dec {count}",
                "jz 3f",
                square_step!(0),
                square_step!(1),
                square_step!(2),
                "jmp 2b",
                "3:",
                a0 = inout(reg) l.a[0] => _,
                a1 = inout(reg) l.a[1] => _,
                b0 = inout(reg) l.b[0] => _,
                b1 = inout(reg) l.b[1] => _,
                p0 = inout(reg) l.rows[0] => _,
                p1 = inout(reg) l.rows[1] => _,
                p2 = inout(reg) l.run => _,
                c = inout(reg) c.wrapping_add(4 * SIDE * SIDE) => _,
                count = inout(reg) l.steps => _,
                a_row = in(reg) l.a_row,
                b_row = in(reg) l.b_row,
                a_step = in(reg) l.a_step,
                b_step = in(reg) l.b_step,
                options(nostack),
            );
        }
    }
}

impl Tiles {
    /// As [`Tiles::product_bf16`] for tiles of B and C that may lie apart.
    ///
    /// # Panics
    /// If a slice is too short, or there is no step.
    #[inline]
    pub(in crate::cpu) fn spread_bf16<const M: usize, const N: usize>(
        &self,
        c: C,
        a: A,
        b: Spread,
        steps: usize,
        first: bool,
        ahead: Ahead,
    ) {
        const { assert!(M >= 1 && M <= 2 && N >= 1 && N <= 2) }
        let size = SIDE * self.columns;
        assert!(steps > 0 && c.x.len() >= (M - 1) * c.a + (N - 1) * c.b + size, "tiles of C");
        assert!(a.end(M, steps, STEP) <= a.x.len(), "tiles of A");
        assert!((N - 1) * b.tile + (steps - 1) * b.step + 2 * size <= b.x.len(), "tiles of B");
        let at = c.x.as_mut_ptr();
        let c = [at, at.wrapping_add(c.b), at.wrapping_add(c.a), at.wrapping_add(c.a + c.b)];
        let start = (!first).then_some(c.map(<*mut f32>::cast_const));
        // SAFETY: each tile of C is `size` numbers and one of B twice as many, and all tiles lie within their
        // slices, as asserted above.
        unsafe { self.raw_bf16::<M, N>(c, start, a, b, steps, ahead) }
    }

    /// Multiplies tiles that lie in registers, `4 * rounds` times, and returns the number of floating-point
    /// operations, two per product: the most that bf16 tiles could do in the time of the call. The tiles are
    /// filled from `x`: the unit is slower on numbers of many bits, which draw more power, than on zeros.
    ///
    /// # Panics
    /// If `x` has less than four tiles.
    pub(in crate::cpu) fn spin_bf16(&self, x: &[bf16], rounds: usize) -> u64 {
        assert!(x.len() >= 4 * SIDE * STEP && self.columns == SIDE, "numbers to multiply");
        // SAFETY: the tiles are configured; the loads read four tiles of `x`, which has them.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm5, [{x} + {row} + 1024]",
                "tileloadd tmm6, [{x} + {row} + 2048]",
                "tileloadd tmm7, [{x} + {row} + 3072]",
                x = in(reg) x.as_ptr(),
                row = in(reg) LINE,
                options(nostack, readonly),
            );
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {count}",
                "jnz 2b",
                count = inout(reg) rounds.max(1) => _,
                options(nostack, nomem),
            );
        }
        (rounds.max(1) * 4 * 2 * SIDE * STEP * self.columns) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amx;
    use super::*;

    fn numbers(n: usize) -> Vec<bf16> {
        (0..n).map(|i| bf16::from_f32((i * 37 % 101) as f32 - 50.3)).collect()
    }

    #[test]
    fn sums_of_pairs_are_the_bits_of_their_products() {
        let Some(amx) = Amx::detect() else {
            eprintln!("NOT TESTED: this machine lacks tiles");
            return;
        };
        const PAIR: usize = 4 * SIDE * SIDE;
        let tiles = Tiles::new(amx, SIDE);
        for (pairs, steps) in [(0, 3), (1, 1), (1, 8), (3, 2), (5, 8)] {
            let (a, b) = (numbers(2 * SIDE * steps * STEP), numbers(2 * pairs * steps * SIDE * STEP));
            let a = A::rows(&a, steps * STEP, STEP);
            let b = B { x: &b, tile: steps * SIDE * STEP };
            let (mut sums, mut products) = (vec![f32::NAN; pairs * PAIR], vec![f32::NAN; pairs * PAIR]);
            // Sums from zero, then on from what they are.
            for first in [true, false] {
                tiles.sums_bf16(&mut sums, a, b, steps, first, |_| Ahead::nothing(b.x));
                for (n, c) in products.chunks_exact_mut(PAIR).enumerate() {
                    let b = B { x: &b.x[2 * n * b.tile..], ..b };
                    tiles.product_bf16::<2, 2>(c, a, b, steps, first, Ahead::nothing(b.x));
                }
                assert!(sums.iter().all(|x| x.is_finite()));
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&sums), bits(&products), "{pairs} pairs, {steps} steps");
            }
        }
    }
}
