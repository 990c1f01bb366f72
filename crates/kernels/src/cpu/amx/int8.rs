//! Products of tiles of int8, with exact sums.
#![allow(unsafe_code)]

use std::arch::asm;

use super::{LINE, SIDE, Tiles};

/// Elements of int8 along the sum that one step takes.
pub(in crate::cpu) const STEP_I8: usize = 64;
/// A whole tile of bytes: 16 rows of A, or four columns each of 16 rows of weights as B.
pub(in crate::cpu) type TileI8 = [[i8; STEP_I8]; SIDE];
/// A whole tile of sums: 16 rows of A times 16 rows of weights.
pub(in crate::cpu) type TileI32 = [[i32; SIDE]; SIDE];

impl Tiles {
    /// Two pairs of tiles of signed A, each times two pairs of tiles of signed B: exact sums of twice [`STEP_I8`] products.
    /// `c[j][i]` is `a[i]` times `b[j][i]`. Four products are under way at once, so that none waits for the one before it.
    ///
    /// # Panics
    /// If the tiles have less than 16 columns.
    #[inline(always)]
    pub(in crate::cpu) fn square_i8(
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
                "tilezero tmm6",
                "tileloadd tmm7, [{b1} + {row}]",
                "tilezero tmm1",
                "tdpbssd tmm1, tmm4, tmm7",
                "tilezero tmm4",
                "tilezero tmm7",
                "tileloadd tmm5, [{a} + {row} + 2048]",
                "tileloadd tmm6, [{b0} + {row} + 2048]",
                "tilezero tmm2",
                "tdpbssd tmm2, tmm5, tmm6",
                "tilezero tmm6",
                "tileloadd tmm7, [{b1} + {row} + 2048]",
                "tilezero tmm3",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilezero tmm5",
                "tilezero tmm7",
                "tileloadd tmm4, [{a} + {row} + 1024]",
                "tileloadd tmm6, [{b0} + {row} + 1024]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tilezero tmm6",
                "tileloadd tmm7, [{b1} + {row} + 1024]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tilezero tmm4",
                "tilezero tmm7",
                "tilestored [{c00} + {row}], tmm0",
                "tilezero tmm0",
                "tileloadd tmm5, [{a} + {row} + 3072]",
                "tileloadd tmm6, [{b0} + {row} + 3072]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tilezero tmm6",
                "tilestored [{c10} + {row}], tmm1",
                "tilezero tmm1",
                "tileloadd tmm7, [{b1} + {row} + 3072]",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilezero tmm5",
                "tilezero tmm7",
                "tilestored [{c01} + {row}], tmm2",
                "tilezero tmm2",
                "tilestored [{c11} + {row}], tmm3",
                "tilezero tmm3",
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
    pub(in crate::cpu) fn shared_i8(
        &self,
        c: &mut [[TileI32; 2]; 2],
        a: [&[TileI8; 2]; 2],
        b: [&[TileI8; 2]; 2],
    ) {
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
                "tilezero tmm4",
                "tileloadd tmm5, [{a1} + {row}]",
                "tilezero tmm2",
                "tdpbssd tmm2, tmm5, tmm6",
                "tilezero tmm6",
                "tilezero tmm3",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilezero tmm5",
                "tilezero tmm7",
                "tileloadd tmm4, [{a0} + {row} + 1024]",
                "tileloadd tmm6, [{b0} + {row} + 1024]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row} + 1024]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tilezero tmm4",
                "tileloadd tmm5, [{a1} + {row} + 1024]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tilezero tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilezero tmm5",
                "tilezero tmm7",
                "tilestored [{c0} + {row}], tmm0",
                "tilezero tmm0",
                "tilestored [{c1} + {row}], tmm1",
                "tilezero tmm1",
                "tilestored [{c0} + {row} + 1024], tmm2",
                "tilezero tmm2",
                "tilestored [{c1} + {row} + 1024], tmm3",
                "tilezero tmm3",
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
}
