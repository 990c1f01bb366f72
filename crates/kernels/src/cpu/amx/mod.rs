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

mod bf16;
mod column;
mod int8;
mod operands;

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

pub(super) use self::int8::{STEP_I8, TileI8, TileI32};
pub(super) use self::operands::{A, Ahead, B, C, Spread, Start};

/// Rows of a tile, and most columns of it.
pub(super) const SIDE: usize = 16;
/// Bytes of a cache line, and of a row of a whole tile.
pub(super) const LINE: usize = 64;
/// Elements of bf16 along the sum that one step takes.
pub(super) const STEP: usize = 32;
/// Proof that tiles of bf16 and int8 may be used, together with AVX-512 F, BW, DQ, VL, BF16 and VNNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(());

impl Amx {
    /// Asks the processor, and the system for permission; the answer is kept.
    pub(super) fn detect() -> Option<Amx> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        // With the option, tests run under an emulator that stands in for the processor (`tests/tiles`).
        let found = || cfg!(zamba_emulated_tiles) || has_instructions() && may_use_tiles();
        FOUND.get_or_init(found).then_some(Amx(()))
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
///
/// The registers behind the tiles are few, and two threads that a core runs at once seem to share them: the more of its tiles a
/// thread holds, the longer its next instruction waits for one. Loops therefore zero a tile of A or B after its last
/// use, which gives its register back and costs nothing else.
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
