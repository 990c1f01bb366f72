//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//!
//! A draw is a function of the key and the counter in integer arithmetic alone, so the same seed gives the same draws on
//! every platform, and the whole state is two numbers.

/// A stream of draws: the seed is the key, the counter says how many were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Philox {
    seed: u64,
    draws: u64,
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds on one counter block.
fn block(mut ctr: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(ctr[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(ctr[2]);
        ctr =
            [(p1 >> 32) as u32 ^ ctr[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ ctr[3] ^ key[1], p0 as u32];
    }
    ctr
}

/// Draws that are made together, so that the compiler makes vectors of them.
pub(crate) const TOGETHER: usize = 16;

/// [`block`] of counters `at ..+ TOGETHER`: the two low words of each, as one number.
#[inline]
#[expect(clippy::needless_range_loop, reason = "one number indexes all four words")]
fn blocks(at: u64, mut key: [u32; 2]) -> [u64; TOGETHER] {
    const LOW: u64 = 0xffff_ffff;
    let mut ctr = [[0; TOGETHER]; 4];
    for l in 0..TOGETHER {
        let at = at.wrapping_add(l as u64);
        (ctr[0][l], ctr[1][l]) = (at & LOW, at >> 32);
    }
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        for l in 0..TOGETHER {
            let p0 = u64::from(MULTIPLIERS[0]) * ctr[0][l];
            let p1 = u64::from(MULTIPLIERS[1]) * ctr[2][l];
            let (c1, c3) = (ctr[1][l], ctr[3][l]);
            (ctr[0][l], ctr[1][l]) = ((p1 >> 32) ^ c1 ^ u64::from(key[0]), p1 & LOW);
            (ctr[2][l], ctr[3][l]) = ((p0 >> 32) ^ c3 ^ u64::from(key[1]), p0 & LOW);
        }
    }
    std::array::from_fn(|l| ctr[0][l] | (ctr[1][l] << 32))
}

/// Uniform on the multiples of 2^-53 in [0, 1).
#[inline]
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

impl Philox {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }

    /// The next draw, uniform on the multiples of 2^-53 in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        let out = block([self.draws as u32, (self.draws >> 32) as u32, 0, 0], self.key());
        self.draws += 1;
        unit(u64::from(out[0]) | (u64::from(out[1]) << 32))
    }

    /// Draws `at ..+ TOGETHER` of the stream, whatever was drawn before.
    #[inline]
    pub(crate) fn uniforms(&self, at: u64) -> [f64; TOGETHER] {
        blocks(at, self.key()).map(unit)
    }

    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library (`kat_vectors`, `philox4x32 10`).
    #[test]
    fn known_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(block(counter, key), expected);
        }
    }

    #[test]
    fn draws_together_are_those_one_by_one() {
        for start in [0, 5, (1 << 32) - 7] {
            let mut rng = Philox { seed: 0x0123_4567_89ab_cdef, draws: start };
            let together = rng.uniforms(start);
            assert_eq!(together, std::array::from_fn(|_| rng.uniform()));
        }
    }

    #[test]
    fn uniform_fills_the_unit_interval() {
        let mut rng = Philox::new(7);
        let drawn: Vec<f64> = (0..10_000).map(|_| rng.uniform()).collect();
        assert!(drawn.iter().all(|u| (0.0..1.0).contains(u)));
        // The mean of 10,000 draws has standard deviation 0.0029.
        let mean = drawn.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.0116, "{mean}");
        assert_ne!(Philox::new(8).uniform(), drawn[0]);
    }
}
