//! Tile instructions (AMX): products of 16 x 32 by 32 x 16 blocks, accumulated in eight tile registers.
//!
//! Rust has no stable intrinsics for them, so they are assembly here, behind two doors: [`Amx`] proves that
//! the processor has them and that the system lets this process use them, and [`Tiles`] proves that the
//! calling thread has configured its tiles. What is computed is what slices say; every pointer is derived from a
//! slice whose length is checked first.
//!
//! A step multiplies tile A (16 rows of 64 bytes) with tile B (16 rows of 4 bytes per column, where a column
//! holds 2 bf16 or 4 int8 that are adjacent along the sum) and adds to tile C (16 rows, one 32-bit number
//! per column). An element of C depends on its row of A and its column of B alone and its steps are added in
//! order, so neither the number of columns nor the blocking of rows leaves a trace in the result. Tile
//! instructions read and write subnormal bf16 and f32 as zero.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

use half::bf16;

/// Rows of a tile, and most columns of it.
pub(super) const SIDE: usize = 16;
/// Elements of bf16 along the sum that one step takes.
pub(super) const STEP: usize = 32;
/// Elements of int8 along the sum that one step takes.
pub(super) const STEP_I8: usize = 64;

/// Proof that tiles of bf16 and int8 may be used, together with AVX-512 F, BW, DQ, VL, BF16 and VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(());

impl Amx {
    /// Asks the processor, and the system for permission; the answer is kept.
    pub(super) fn detect() -> Option<Amx> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(|| has_instructions() && may_use_tiles()).then_some(Amx(()))
    }
}

fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni");
    vectors && __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE | INT8) == (BF16 | TILE | INT8)
}

/// Asks Linux to save and restore the state of tiles for this process; other systems are not known to.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that takes two numbers and touches no memory of the process; the registers that
    // the kernel overwrites are declared.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// The tiles of this thread, configured; released when dropped. Tiles 0 to 3 are C, 4 and 5 are A, 6 and
/// 7 are B.
pub(super) struct Tiles {
    columns: usize,
    /// The configuration belongs to the thread.
    thread: PhantomData<*const ()>,
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Configures tiles B and C for `columns` columns.
    ///
    /// # Panics
    /// If there are no columns, or more than [`SIDE`].
    pub(super) fn new(_: Amx, columns: usize) -> Tiles {
        assert!((1..=SIDE).contains(&columns), "{columns} columns in a tile");
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        for tile in 0..8 {
            let is_a = tile == 4 || tile == 5;
            config.bytes_per_row[tile] = if is_a { 64 } else { 4 * columns as u16 };
            config.rows[tile] = SIDE as u8;
        }
        // SAFETY: `Amx` says that the instruction exists; it reads the 64 bytes of `config`, which the assembly
        // is not told to leave alone, so they are in memory by then.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack)) };
        Tiles { columns, thread: PhantomData }
    }

    /// Columns of tiles B and C.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as in `new`; the instruction touches no memory.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Tiles of A in memory, in elements of `T`.
#[derive(Clone, Copy)]
pub(super) struct A<'a, T> {
    /// From the first element of the first tile on.
    pub(super) x: &'a [T],
    /// From one row of a tile to the next.
    pub(super) row: usize,
    /// From one step to the next.
    pub(super) step: usize,
    /// From one tile to the tile of the next 16 rows.
    pub(super) tile: usize,
}

impl<'a, T> A<'a, T> {
    /// Rows of a row-major matrix, `stride` elements apart, of which `row_step` are taken per step.
    pub(super) fn rows(x: &'a [T], stride: usize, row_step: usize) -> Self {
        A { x, row: stride, step: row_step, tile: SIDE * stride }
    }

    /// Tiles that lie one after the other, `steps` of them per 16 rows, each of `row_step` elements a row.
    pub(super) fn packed(x: &'a [T], steps: usize, row_step: usize) -> Self {
        A { x, row: row_step, step: SIDE * row_step, tile: steps * SIDE * row_step }
    }

    /// The same, from step `step` on.
    pub(super) fn from_step(self, step: usize) -> Self {
        A { x: &self.x[step * self.step..], ..self }
    }

    /// The last element that `tiles` tiles and `steps` steps of `width` elements read, plus one.
    fn end(&self, tiles: usize, steps: usize, width: usize) -> usize {
        (tiles - 1) * self.tile + (SIDE - 1) * self.row + (steps - 1) * self.step + width
    }
}

/// Tiles of B in memory, in elements of `T`: those of the steps of 16 columns one after the other.
#[derive(Clone, Copy)]
pub(super) struct B<'a, T> {
    /// From the first tile on.
    pub(super) x: &'a [T],
    /// From one tile to the tile of the next columns.
    pub(super) tile: usize,
}

/// Rows that will be needed soon: in each step a line of each is fetched into L2. Any address may be given, it is never read.
#[derive(Clone, Copy)]
pub(super) struct Ahead<T>(pub(super) [*const T; 2]);

impl<T> Ahead<T> {
    /// Nothing to fetch: the same line again and again.
    pub(super) fn nothing(near: &[T]) -> Self {
        Ahead([near.as_ptr(); 2])
    }
}

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
            "add {p0}, 64",
            "add {p1}, 64",
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

/// A method of [`Tiles`] for operands of one type.
macro_rules! product {
    ($(#[$doc:meta])* $name:ident, $type_a:ty, $type_b:ty, $type_c:ty, $multiply:literal) => {
        impl Tiles {
            $(#[$doc])*
            ///
            /// `c` holds the `M * N` tiles of C, each `[16, columns]`, those of one tile of A together. They
            /// are overwritten if `first`, else added to.
            ///
            /// # Panics
            /// If a slice is too short, or there is no step.
            #[inline]
            pub(super) fn $name<const M: usize, const N: usize>(
                &self,
                c: &mut [$type_c],
                a: A<$type_a>,
                b: B<$type_b>,
                steps: usize,
                first: bool,
                ahead: Ahead<$type_a>,
            ) {
                const { assert!(M >= 1 && M <= 2 && N >= 1 && N <= 2) }
                const WIDTH: usize = 64 / size_of::<$type_a>();
                const ADJACENT: usize = 4 / size_of::<$type_b>();
                let size = SIDE * self.columns;
                assert!(steps > 0 && c.len() >= M * N * size, "tiles of C");
                assert!(a.end(M, steps, WIDTH) <= a.x.len(), "tiles of A");
                assert!((N - 1) * b.tile + steps * size * ADJACENT <= b.x.len(), "tiles of B");
                let (c, row) = (c.as_mut_ptr(), 4 * self.columns);
                let tile = |j: usize| c.wrapping_add(j * size);
                let (a0, b0) = (a.x.as_ptr(), b.x.as_ptr());
                let a1 = if M == 2 { a0.wrapping_add(a.tile) } else { a0 };
                let b1 = if N == 2 { b0.wrapping_add(b.tile) } else { b0 };
                let l = Loop {
                    a: [a0.cast(), a1.cast()],
                    b: [b0.cast(), b1.cast()],
                    ahead: ahead.0.map(<*const $type_a>::cast),
                    a_row: a.row * size_of::<$type_a>(),
                    a_step: a.step * size_of::<$type_a>(),
                    b_row: row,
                    b_step: SIDE * row,
                    steps,
                };
                // SAFETY: `self` says that the tiles are configured for `columns`. Each tile of C is `size`
                // numbers within `c`; those of A and B lie within their slices, as asserted above; prefetches
                // do not fault, whatever their address.
                unsafe {
                    if first {
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
                    } else {
                        c_tile!("load", "0", tile(0), row);
                        if N == 2 {
                            c_tile!("load", "1", tile(1), row);
                        }
                        if M == 2 {
                            c_tile!("load", "2", tile(N), row);
                        }
                        if M * N == 4 {
                            c_tile!("load", "3", tile(3), row);
                        }
                    }
                    match (M, N) {
                        (1, 1) => steps!(
                            l,
                            "tileloadd tmm4, [{a0} + {a_row}]",
                            "tileloadd tmm6, [{b0} + {b_row}]",
                            concat!($multiply, " tmm0, tmm4, tmm6"),
                        ),
                        (1, 2) => steps!(
                            l,
                            "tileloadd tmm4, [{a0} + {a_row}]",
                            "tileloadd tmm6, [{b0} + {b_row}]",
                            concat!($multiply, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{b1} + {b_row}]",
                            concat!($multiply, " tmm1, tmm4, tmm7"),
                        ),
                        (2, 1) => steps!(
                            l,
                            "tileloadd tmm4, [{a0} + {a_row}]",
                            "tileloadd tmm6, [{b0} + {b_row}]",
                            concat!($multiply, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm5, [{a1} + {a_row}]",
                            concat!($multiply, " tmm2, tmm5, tmm6"),
                        ),
                        _ => steps!(
                            l,
                            "tileloadd tmm4, [{a0} + {a_row}]",
                            "tileloadd tmm6, [{b0} + {b_row}]",
                            concat!($multiply, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{b1} + {b_row}]",
                            concat!($multiply, " tmm1, tmm4, tmm7"),
                            "tileloadd tmm5, [{a1} + {a_row}]",
                            concat!($multiply, " tmm2, tmm5, tmm6"),
                            concat!($multiply, " tmm3, tmm5, tmm7"),
                        ),
                    }
                    c_tile!("store", "0", tile(0), row);
                    if N == 2 {
                        c_tile!("store", "1", tile(1), row);
                    }
                    if M == 2 {
                        c_tile!("store", "2", tile(N), row);
                    }
                    if M * N == 4 {
                        c_tile!("store", "3", tile(3), row);
                    }
                }
            }
        }
    };
}

product!(
    /// Products of `M` tiles of A and `N` of B, in bf16 with sums in f32, over `steps` steps of [`STEP`].
    product_bf16, bf16, bf16, f32, "tdpbf16ps"
);
product!(
    /// Products of `M` tiles of signed A and `N` of unsigned B, exact, over `steps` steps of [`STEP_I8`].
    product_i8_u8, i8, u8, i32, "tdpbsud"
);

impl Tiles {
    /// One step of signed A, whose rows are `stride` apart, times signed B: exact sums of [`STEP_I8`] products.
    /// Calls with `ODD` and without use different tiles, so that they need not wait for one another.
    ///
    /// # Panics
    /// If A is too short or the tiles are not whole.
    #[inline(always)]
    pub(super) fn group_i8<const ODD: bool>(
        &self,
        c: &mut [[i32; SIDE]; SIDE],
        a: &[i8],
        stride: usize,
        b: &[u8; SIDE * 64],
    ) {
        assert!(self.columns == SIDE && (SIDE - 1) * stride + STEP_I8 <= a.len(), "tile of A");
        let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
        macro_rules! step {
            ($c:literal, $a:literal, $b:literal) => {
                asm!(
                    concat!("tilezero tmm", $c),
                    concat!("tileloadd tmm", $b, ", [{b} + {row}]"),
                    concat!("tileloadd tmm", $a, ", [{a} + {stride}]"),
                    concat!("tdpbssd tmm", $c, ", tmm", $a, ", tmm", $b),
                    concat!("tilestored [{c} + {row}], tmm", $c),
                    a = in(reg) a, b = in(reg) b, c = in(reg) c, stride = in(reg) stride, row = in(reg) 64usize,
                    options(nostack),
                )
            };
        }
        // SAFETY: `self` says that the tiles are configured, for 16 columns as asserted. Rows of A lie in its
        // slice as asserted; B and C are whole tiles.
        unsafe {
            if ODD {
                step!("1", "5", "7");
            } else {
                step!("0", "4", "6");
            }
        }
    }

    /// Multiplies tiles that lie in registers, `4 * rounds` times, and returns the number of floating-point
    /// operations, two per product: the most that bf16 tiles could do in the time of the call.
    pub(super) fn spin_bf16(&self, rounds: usize) -> u64 {
        // SAFETY: the tiles are configured; no memory is touched.
        unsafe {
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
