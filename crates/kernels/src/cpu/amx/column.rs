//! Sums of tiles of bf16 that go to memory and come back.
#![allow(unsafe_code)]

use std::arch::asm;

use half::bf16;

use super::bf16::c_tile;
use super::{A, Ahead, B, LINE, SIDE, STEP, Tiles};

/// Numbers of a tile of C.
const SIZE: usize = SIDE * SIDE;

/// Where the tiles of a column lie, in bytes.
struct Loop {
    a: [*const u8; 2],
    b: *const u8,
    ahead: [*const u8; 2],
    a_row: usize,
    a_step: usize,
    steps: usize,
}

/// One step of two tiles of A by one of B, in three parts: before the products with tile 0 and 1 of C, and the last. Tiles of
/// B pass once per panel of A and are asked for as what the first-level cache need not keep.
macro_rules! column_step {
    (0) => {
        concat!("tileloaddt1 tmm6, [{b} + {b_row}]", "\n", "tileloadd tmm4, [{a0} + {a_row}]")
    };
    (1) => {
        concat!("tdpbf16ps tmm0, tmm4, tmm6", "\n", "tilezero tmm4", "\n", "tileloadd tmm5, [{a1} + {a_row}]")
    };
    (2) => {
        concat!("tdpbf16ps tmm1, tmm5, tmm6", "\n", "tilezero tmm5", "\n", "tilezero tmm6")
    };
}

impl Tiles {
    /// Adds two tiles of A times each tile of B to sums: `c` is `[tiles of B][2 of A][16, 16]`. With `first` they start
    /// from zero. The same numbers as [`Tiles::product_bf16`] of each tile of B gives. `ahead` says what to fetch while
    /// a tile of B is met, a line of each run per step.
    ///
    /// Sums that go to memory and come back are what holds such a loop back, so those of one tile of B are written while
    /// the next one's first products run, and read after lines of them were fetched in the steps before. Two tiles of B
    /// at a time would load a third less, but need all eight registers, which costs half the speed while a neighbour on the
    /// core uses its tiles.
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
        let (columns, rest) = c.as_chunks_mut::<{ 2 * SIZE }>();
        assert!(rest.is_empty() && self.columns == SIDE && steps > 0, "tiles of C");
        assert!(a.end(2, steps, STEP) <= a.x.len(), "tiles of A");
        assert!(
            columns.is_empty() || (columns.len() - 1) * b.tile + steps * 2 * SIZE <= b.x.len(),
            "tiles of B"
        );
        let mut before: Option<*mut f32> = None;
        for (n, c) in columns.iter_mut().enumerate() {
            let c = c.as_mut_ptr();
            let l = Loop {
                a: [a.x.as_ptr().cast(), a.x.as_ptr().wrapping_add(a.tile).cast()],
                b: b.x.as_ptr().wrapping_add(n * b.tile).cast(),
                ahead: ahead(n).0.map(<*const bf16>::cast),
                a_row: a.row * size_of::<bf16>(),
                a_step: a.step * size_of::<bf16>(),
                steps,
            };
            // SAFETY: `self` says that the tiles are configured, for 16 columns as asserted. Tiles of A and B lie
            // within their slices, as asserted; those of C are the chunk, and those at `before` the chunk that the last round
            // had, which nothing has touched since.
            unsafe { self.column(c, before, first, l) }
            before = Some(c);
        }
        if let Some(c) = before {
            // SAFETY: as above.
            unsafe {
                c_tile!("store", "0", c, LINE);
                c_tile!("store", "1", c.add(SIZE), LINE);
            }
        }
    }

    /// Writes the tiles of C to `before` if that is given, and starts them anew: from zero with `first`, else from `c`. Then
    /// adds the products of all steps and leaves them in the tiles.
    ///
    /// # Safety
    /// `before` and `c` are 2 tiles of C that may be written and read; those of `l` may be read; there is a step.
    #[inline]
    unsafe fn column(&self, c: *mut f32, before: Option<*mut f32>, first: bool, l: Loop) {
        macro_rules! turn {
            ($tile:literal, $at:expr) => {
                if let Some(before) = before {
                    c_tile!("store", $tile, before.wrapping_add($at * SIZE), LINE);
                }
                if first {
                    asm!(concat!("tilezero tmm", $tile), options(nostack, nomem));
                } else {
                    c_tile!("load", $tile, c.wrapping_add($at * SIZE), LINE);
                }
            };
        }
        // SAFETY: the caller vouches for all memory but that of prefetches, which do not fault.
        unsafe {
            asm!(
                column_step!(0),
                a0 = in(reg) l.a[0],
                b = in(reg) l.b,
                a_row = in(reg) l.a_row,
                b_row = in(reg) LINE,
                options(nostack),
            );
            turn!("0", 0);
            asm!(column_step!(1), a1 = in(reg) l.a[1], a_row = in(reg) l.a_row, options(nostack));
            turn!("1", 1);
            asm!(
                "2:",
                column_step!(2),
                "prefetcht1 [{p0}]",
                "add {a0}, {a_step}",
                "add {a1}, {a_step}",
                "add {b}, 1024",
                "prefetcht1 [{p1}]",
                "add {p0}, 64",
                "add {p1}, 64",
                "prefetcht0 [{c}]",
                "prefetcht0 [{c} + 64]",
                "prefetcht0 [{c} + 128]",
                "prefetcht0 [{c} + 192]",
                "add {c}, 256",
                "dec {count}",
                "jz 3f",
                column_step!(0),
                column_step!(1),
                "jmp 2b",
                "3:",
                a0 = inout(reg) l.a[0] => _,
                a1 = inout(reg) l.a[1] => _,
                b = inout(reg) l.b => _,
                p0 = inout(reg) l.ahead[0] => _,
                p1 = inout(reg) l.ahead[1] => _,
                c = inout(reg) c.wrapping_add(2 * SIZE) => _,
                count = inout(reg) l.steps => _,
                a_row = in(reg) l.a_row,
                b_row = in(reg) LINE,
                a_step = in(reg) l.a_step,
                options(nostack),
            );
        }
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
    fn sums_are_the_bits_of_products() {
        let Some(amx) = Amx::detect() else {
            eprintln!("NOT TESTED: this machine lacks tiles");
            return;
        };
        let tiles = Tiles::new(amx, SIDE);
        for (count, steps) in [(0, 3), (1, 1), (1, 8), (2, 8), (5, 2), (9, 8)] {
            let (a, b) = (numbers(2 * SIDE * steps * STEP), numbers(count * steps * SIDE * STEP));
            let a = A::rows(&a, steps * STEP, STEP);
            let b = B { x: &b, tile: steps * SIDE * STEP };
            let (mut sums, mut products) =
                (vec![f32::NAN; count * 2 * SIZE], vec![f32::NAN; count * 2 * SIZE]);
            // Sums from zero, then on from what they are.
            for first in [true, false] {
                tiles.sums_bf16(&mut sums, a, b, steps, first, |_| Ahead::nothing(b.x));
                for (n, c) in products.chunks_exact_mut(2 * SIZE).enumerate() {
                    tiles.product_bf16(c, a, &b.x[n * b.tile..], steps, first, Ahead::nothing(b.x));
                }
                assert!(sums.iter().all(|x| x.is_finite()));
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&sums), bits(&products), "{count} tiles of B, {steps} steps");
            }
        }
    }
}
