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
/// Bytes of a cache line, and of a row of a whole tile.
pub(super) const LINE: usize = 64;
/// Elements of bf16 along the sum that one step takes.
pub(super) const STEP: usize = 32;
/// Elements of int8 along the sum that one step takes.
pub(super) const STEP_I8: usize = 64;
/// A whole tile of bytes: 16 rows of A, or four columns each of 16 rows of weights as B.
pub(super) type TileI8 = [[i8; STEP_I8]; SIDE];
/// A whole tile of sums: 16 rows of A times 16 rows of weights.
pub(super) type TileI32 = [[i32; SIDE]; SIDE];

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

/// Tiles of B that lie apart, each of them one run of memory.
#[derive(Clone, Copy)]
pub(super) struct Spread<'a, T> {
    /// From the first tile on.
    pub(super) x: &'a [T],
    /// From one tile to the tile of the next columns.
    pub(super) tile: usize,
    /// From one step to the next.
    pub(super) step: usize,
}

/// Tiles of C that lie apart, each of them one run of memory.
pub(super) struct C<'a> {
    /// From the first tile on.
    pub(super) x: &'a mut [f32],
    /// From one tile to that of the next tile of A.
    pub(super) a: usize,
    /// From one tile to that of the next tile of B.
    pub(super) b: usize,
}

/// What will be needed soon and is fetched into L2 meanwhile: in each step a line of each of two rows, and two
/// lines of a run. Nothing is read, so any address will do.
#[derive(Clone, Copy)]
pub(super) struct Ahead<T> {
    pub(super) rows: [*const T; 2],
    pub(super) run: *const T,
}

impl<T> Ahead<T> {
    /// Nothing in particular: what lies behind `near`.
    pub(super) fn nothing(near: &[T]) -> Self {
        Ahead { rows: [near.as_ptr(); 2], run: near.as_ptr() }
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, T> {
    Zero,
    /// What the tiles of C hold.
    Own,
    /// Tiles laid out as those of C.
    From(&'a [T]),
}

impl<T> From<bool> for Start<'_, T> {
    /// Whether this is the first product.
    fn from(first: bool) -> Self {
        if first { Start::Zero } else { Start::Own }
    }
}

/// Fetches the lines of `x` into L2. Rows that lie pages apart need it: the processor's own prefetching ends
/// with the page.
#[inline(always)]
pub(super) fn prefetch<T>(x: &[T]) {
    let (start, bytes) = (x.as_ptr().cast::<i8>(), size_of_val(x));
    for at in (0..bytes).step_by(64) {
        // SAFETY: every x86-64 processor has the instruction, and it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at)) }
    }
}

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

/// A method of [`Tiles`] for operands of one type.
macro_rules! product {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $type_a:ty, $type_b:ty, $type_c:ty, $multiply:literal) => {
        impl Tiles {
            $(#[$doc])*
            ///
            /// `c` receives the `M * N` tiles of C, each `[16, columns]`, those of one tile of A together.
            ///
            /// # Panics
            /// If a slice is too short, or there is no step.
            #[inline]
            pub(super) fn $name<'s, const M: usize, const N: usize>(
                &self,
                c: &mut [$type_c],
                a: A<$type_a>,
                b: B<$type_b>,
                steps: usize,
                start: impl Into<Start<'s, $type_c>>,
                ahead: Ahead<$type_a>,
            ) {
                const { assert!(M >= 1 && M <= 2 && N >= 1 && N <= 2) }
                const WIDTH: usize = 64 / size_of::<$type_a>();
                const ADJACENT: usize = 4 / size_of::<$type_b>();
                let size = SIDE * self.columns;
                assert!(steps > 0 && c.len() >= M * N * size, "tiles of C");
                assert!(a.end(M, steps, WIDTH) <= a.x.len(), "tiles of A");
                assert!((N - 1) * b.tile + steps * size * ADJACENT <= b.x.len(), "tiles of B");
                let tiles = [0, size, N * size, 3 * size];
                let c = c.as_mut_ptr();
                let c = tiles.map(|at| c.wrapping_add(at));
                let start = match start.into() {
                    Start::Zero => None,
                    Start::Own => Some(c.map(<*mut $type_c>::cast_const)),
                    Start::From(before) => {
                        assert!(before.len() >= M * N * size, "tiles of C");
                        Some(tiles.map(|at| before.as_ptr().wrapping_add(at)))
                    }
                };
                let b = Spread { x: b.x, tile: b.tile, step: size * ADJACENT };
                // SAFETY: each tile of C is `size` numbers within `c`, tile `(1, 0)` being the one after the `N` of
                // the first row; those of A and B lie within their slices, as asserted above.
                unsafe { self.$raw::<M, N>(c, start, a, b, steps, ahead) }
            }

            /// The same with tiles `(0, 0)`, `(0, 1)`, `(1, 0)` and `(1, 1)` of C at `c`, to start from those at
            /// `start` or from zero.
            ///
            /// # Safety
            /// Each of the `M * N` tiles of C is 16 times `columns` numbers that may be written, or read. Tiles of A and B lie
            /// within their slices, and there is a step.
            #[inline]
            unsafe fn $raw<const M: usize, const N: usize>(
                &self,
                c: [*mut $type_c; 4],
                start: Option<[*const $type_c; 4]>,
                a: A<$type_a>,
                b: Spread<$type_b>,
                steps: usize,
                ahead: Ahead<$type_a>,
            ) {
                let row = 4 * self.columns;
                let (a0, b0) = (a.x.as_ptr(), b.x.as_ptr());
                let a1 = if M == 2 { a0.wrapping_add(a.tile) } else { a0 };
                let b1 = if N == 2 { b0.wrapping_add(b.tile) } else { b0 };
                let l = Loop {
                    a: [a0.cast(), a1.cast()],
                    b: [b0.cast(), b1.cast()],
                    rows: ahead.rows.map(<*const $type_a>::cast),
                    run: ahead.run.cast(),
                    a_row: a.row * size_of::<$type_a>(),
                    a_step: a.step * size_of::<$type_a>(),
                    b_row: row,
                    b_step: b.step * size_of::<$type_b>(),
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
    };
}

product!(
    /// Products of `M` tiles of A and `N` of B, in bf16 with sums in f32, over `steps` steps of [`STEP`].
    product_bf16, raw_bf16, bf16, bf16, f32, "tdpbf16ps"
);
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
    pub(super) fn sums_bf16(
        &self,
        c: &mut [f32],
        a: A<bf16>,
        b: B<bf16>,
        steps: usize,
        first: bool,
        ahead: impl Fn(usize) -> Ahead<bf16>,
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
    pub(super) fn spread_bf16<const M: usize, const N: usize>(
        &self,
        c: C,
        a: A<bf16>,
        b: Spread<bf16>,
        steps: usize,
        first: bool,
        ahead: Ahead<bf16>,
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

    /// Two pairs of tiles of signed A, each times two pairs of tiles of signed B: exact sums of twice [`STEP_I8`] products.
    /// `c[j][i]` is `a[i]` times `b[j][i]`. Four products are under way at once, so that none waits for the one before it.
    ///
    /// # Panics
    /// If the tiles have less than 16 columns.
    #[inline(always)]
    pub(super) fn square_i8(
        &self,
        c: [[&mut TileI32; 2]; 2],
        a: &[[TileI8; 2]; 2],
        b: [&[[TileI8; 2]; 2]; 2],
    ) {
        assert!(self.columns == SIDE, "{} columns in a tile", self.columns);
        let [[c00, c01], [c10, c11]] = c;
        // SAFETY: `self` says that the tiles are configured, for 16 columns as asserted; A, B and C are whole tiles.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tilezero tmm0",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}]",
                "tilezero tmm1",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {row} + 2048]",
                "tileloadd tmm6, [{b0} + {row} + 2048]",
                "tilezero tmm2",
                "tdpbssd tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b1} + {row} + 2048]",
                "tilezero tmm3",
                "tdpbssd tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{a} + {row} + 1024]",
                "tileloadd tmm6, [{b0} + {row} + 1024]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row} + 1024]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tilestored [{c00} + {row}], tmm0",
                "tileloadd tmm5, [{a} + {row} + 3072]",
                "tileloadd tmm6, [{b0} + {row} + 3072]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tilestored [{c10} + {row}], tmm1",
                "tileloadd tmm7, [{b1} + {row} + 3072]",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{c01} + {row}], tmm2",
                "tilestored [{c11} + {row}], tmm3",
                a = in(reg) a.as_ptr(),
                b0 = in(reg) b[0].as_ptr(),
                b1 = in(reg) b[1].as_ptr(),
                c00 = in(reg) c00.as_mut_ptr(),
                c01 = in(reg) c01.as_mut_ptr(),
                c10 = in(reg) c10.as_mut_ptr(),
                c11 = in(reg) c11.as_mut_ptr(),
                row = in(reg) LINE,
                options(nostack),
            );
        }
    }

    /// Two pairs of tiles of signed A, each times the same two pairs of tiles of signed B: exact sums of twice [`STEP_I8`]
    /// products. `c[j][i]` is `a[i]` times `b[j]`. Eight loads for eight products, where [`Tiles::square_i8`] needs twelve.
    ///
    /// # Panics
    /// If the tiles have less than 16 columns.
    #[inline(always)]
    pub(super) fn shared_i8(&self, c: &mut [[TileI32; 2]; 2], a: [&[TileI8; 2]; 2], b: [&[TileI8; 2]; 2]) {
        assert!(self.columns == SIDE, "{} columns in a tile", self.columns);
        let [c0, c1] = c;
        // SAFETY: `self` says that the tiles are configured, for 16 columns as asserted; A, B and C are whole tiles.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tilezero tmm0",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}]",
                "tilezero tmm1",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row}]",
                "tilezero tmm2",
                "tdpbssd tmm2, tmm5, tmm6",
                "tilezero tmm3",
                "tdpbssd tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{a0} + {row} + 1024]",
                "tileloadd tmm6, [{b0} + {row} + 1024]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row} + 1024]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row} + 1024]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{c0} + {row}], tmm0",
                "tilestored [{c1} + {row}], tmm1",
                "tilestored [{c0} + {row} + 1024], tmm2",
                "tilestored [{c1} + {row} + 1024], tmm3",
                a0 = in(reg) a[0].as_ptr(),
                a1 = in(reg) a[1].as_ptr(),
                b0 = in(reg) b[0].as_ptr(),
                b1 = in(reg) b[1].as_ptr(),
                c0 = in(reg) c0.as_mut_ptr(),
                c1 = in(reg) c1.as_mut_ptr(),
                row = in(reg) LINE,
                options(nostack),
            );
        }
    }

    /// Multiplies tiles that lie in registers, `4 * rounds` times, and returns the number of floating-point
    /// operations, two per product: the most that bf16 tiles could do in the time of the call. The tiles are
    /// filled from `x`: the unit is slower on numbers of many bits, which draw more power, than on zeros.
    ///
    /// # Panics
    /// If `x` has less than four tiles.
    pub(super) fn spin_bf16(&self, x: &[bf16], rounds: usize) -> u64 {
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
