//! Products of tiles of bf16, with sums in f32.
#![allow(unsafe_code)]

use std::arch::asm;

use half::bf16;

use super::{A, Ahead, C, LINE, SIDE, STEP, Spread, Start, Tiles};

/// Where the tiles of a product lie, in bytes.
struct Loop {
    a: [*const u8; 2],
    b: [*const u8; 2],
    ahead: [*const u8; 2],
    a_row: usize,
    a_step: usize,
    b_row: usize,
    b_step: usize,
    steps: usize,
}

/// A line, or two, of each run of memory that is fetched ahead.
macro_rules! ask {
    (1) => {
        concat!("prefetcht1 [{p0}]", "\n", "prefetcht1 [{p1}]", "\n", "add {p0}, 64", "\n", "add {p1}, 64")
    };
    (2) => {
        concat!(
            "prefetcht1 [{p0}]",
            "\n",
            "prefetcht1 [{p0} + 64]",
            "\n",
            "prefetcht1 [{p1}]",
            "\n",
            "prefetcht1 [{p1} + 64]",
            "\n",
            "add {p0}, 128",
            "\n",
            "add {p1}, 128"
        )
    };
}

/// The given instructions once per step.
macro_rules! steps {
    ($l:expr, $($line:expr),+ $(,)?) => {
        asm!(
            "2:",
            $($line,)+
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {b0}, {b_step}",
            "add {b1}, {b_step}",
            "dec {count}",
            "jnz 2b",
            a0 = inout(reg) $l.a[0] => _,
            a1 = inout(reg) $l.a[1] => _,
            b0 = inout(reg) $l.b[0] => _,
            b1 = inout(reg) $l.b[1] => _,
            p0 = inout(reg) $l.ahead[0] => _,
            p1 = inout(reg) $l.ahead[1] => _,
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
pub(super) use c_tile;

impl Tiles {
    /// Products of two tiles of A and one of B, in bf16 with sums in f32, over `steps` steps of [`STEP`]. Those of B lie one
    /// after the other.
    ///
    /// `c` receives the two tiles of C, each `[16, columns]`. In each step a line of each run of `ahead` is fetched.
    ///
    /// # Panics
    /// If a slice is too short, or there is no step.
    #[inline]
    pub(in crate::cpu) fn product_bf16<'s>(
        &self,
        c: &mut [f32],
        a: A,
        b: &[bf16],
        steps: usize,
        start: impl Into<Start<'s>>,
        ahead: Ahead,
    ) {
        let size = SIDE * self.columns;
        assert!(steps > 0 && c.len() >= 2 * size, "tiles of C");
        assert!(a.end(2, steps, STEP) <= a.x.len(), "tiles of A");
        assert!(steps * 2 * size <= b.len(), "tiles of B");
        // Tile `(1, 0)` of C comes second, and there are none of a second tile of B.
        let tiles = [0, 0, size, size];
        let c = c.as_mut_ptr();
        let c = tiles.map(|at| c.wrapping_add(at));
        let start = match start.into() {
            Start::Zero => None,
            Start::Own => Some(c.map(<*mut f32>::cast_const)),
            Start::From(before) => {
                assert!(before.len() >= 2 * size, "tiles of C");
                Some(tiles.map(|at| before.as_ptr().wrapping_add(at)))
            }
        };
        let b = Spread { x: b, tile: 0, step: 2 * size };
        // SAFETY: both tiles of C are `size` numbers within `c`, or within what they start from; those of A and B lie within
        // their slices, as asserted above.
        unsafe { self.raw_bf16::<2, 1>(c, start, a, b, steps, ahead) }
    }

    /// The same for `M` tiles of A and `N` of B, with tiles `(0, 0)`, `(0, 1)`, `(1, 0)` and `(1, 1)` of C at `c`, to start
    /// from those at `start` or from zero. With two tiles of B two lines of each run of `ahead` are fetched per step.
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
            ahead: ahead.0.map(<*const bf16>::cast),
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
                    "tilezero tmm4",
                    "tilezero tmm6",
                    ask!(1),
                ),
                (1, 2) => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tilezero tmm6",
                    "tileloadd tmm7, [{b1} + {b_row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tilezero tmm4",
                    "tilezero tmm7",
                    ask!(2),
                ),
                (2, 1) => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tilezero tmm4",
                    "tileloadd tmm5, [{a1} + {a_row}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tilezero tmm5",
                    "tilezero tmm6",
                    ask!(1),
                ),
                _ => steps!(
                    l,
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {b_row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tilezero tmm4",
                    "tileloadd tmm5, [{a1} + {a_row}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tilezero tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tilezero tmm5",
                    "tilezero tmm7",
                    ask!(2),
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

    /// As [`Tiles::product_bf16`] for `M` tiles of A and `N` of B, where tiles of B and C may lie apart. With two of B, two
    /// lines of each run of `ahead` are fetched per step.
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
    /// filled from `x`, because tiles of zeros that no load has made take no registers.
    ///
    /// # Panics
    /// If `x` has less than two tiles.
    pub(in crate::cpu) fn spin_bf16(&self, x: &[bf16], rounds: usize) -> u64 {
        assert!(x.len() >= 2 * SIDE * STEP && self.columns == SIDE, "numbers to multiply");
        // SAFETY: the tiles are configured; the loads read two tiles of `x`, which has them.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{x} + {row} + 1024]",
                "tilezero tmm0",
                "tilezero tmm1",
                x = in(reg) x.as_ptr(),
                row = in(reg) LINE,
                options(nostack, readonly),
            );
            // Four tiles in use: with all eight the limit would be halved while a neighbour on the core uses its own.
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "dec {count}",
                "jnz 2b",
                count = inout(reg) rounds.max(1) => _,
                options(nostack, nomem),
            );
        }
        (rounds.max(1) * 4 * 2 * SIDE * STEP * self.columns) as u64
    }
}
