//! MinHash (Broder, 1997) over hashes of n-grams, as `datasketch` 2 computes it (`scheme="affine32"`): with the same
//! seed and the same 32-bit hashes of n-grams the signatures are equal.
//!
//! Permutation k sends x to `a_k * fmix32(x) + b_k` modulo 2^32 with `a_k` odd, a bijection. Each is applied to each
//! n-gram: the arithmetic is that of 32-bit lanes, which the compiler turns into vectors on every target.

use super::Settings;
use super::mt19937::Mt19937;
use super::shingles::fmix64;

/// Permutations whose minima stay in registers while a text's n-grams pass by.
const LANES: usize = 16;

/// The permutations of a signature.
#[derive(Debug, Clone)]
pub struct Permutations {
    count: usize,
    /// Padded to whole groups of lanes.
    a: Vec<[u32; LANES]>,
    b: Vec<[u32; LANES]>,
}

impl Permutations {
    /// As many as the settings' bands and rows need, drawn by the settings' seed.
    pub fn new(settings: &Settings) -> Permutations {
        let count = settings.permutations();
        let mut random = Mt19937::new(settings.seed);
        // All multipliers come first, then all increments, as numpy draws two arrays.
        let a: Vec<u32> = (0..count).map(|_| (random.next() << 1) | 1).collect();
        let b: Vec<u32> = (0..count).map(|_| random.next()).collect();
        let pad = |values: &[u32]| {
            let group = |part: &[u32]| std::array::from_fn(|i| part.get(i).copied().unwrap_or(1));
            values.chunks(LANES).map(group).collect()
        };
        Permutations { count, a: pad(&a), b: pad(&b) }
    }

    /// The signature of a set of n-grams, given by their hashes, into `out`: for each permutation the smallest
    /// image, `u32::MAX` if the set is empty.
    pub fn signature(&self, hashes: &mut [u32], out: &mut Vec<u32>) {
        out.clear();
        hashes.iter_mut().for_each(|hash| *hash = fmix32(*hash));
        for (a, b) in self.a.iter().zip(&self.b) {
            out.extend(minima(a, b, hashes));
        }
        out.truncate(self.count);
    }
}

fn minima(a: &[u32; LANES], b: &[u32; LANES], mixed: &[u32]) -> [u32; LANES] {
    let mut least = [u32::MAX; LANES];
    for &x in mixed {
        for lane in 0..LANES {
            let image = a[lane].wrapping_mul(x).wrapping_add(b[lane]);
            least[lane] = least[lane].min(image);
        }
    }
    least
}

/// The 32-bit finaliser of MurmurHash3.
#[inline]
fn fmix32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// A hash of each band of a signature, in which the number of the band takes part; never 0.
pub fn band_keys(signature: &[u32], rows: usize) -> impl Iterator<Item = u64> + '_ {
    signature.chunks_exact(rows).enumerate().map(|(band, values)| {
        let start = fmix64(band as u64 + 1);
        values.iter().fold(start, |key, &value| fmix64(key ^ u64::from(value))).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_minima_over_all_ngrams() {
        for (bands, rows) in [(32, 4), (14, 8), (5, 7), (1, 1)] {
            let settings = Settings { bands, rows, ..Settings::default() };
            let permutations = Permutations::new(&settings);
            let hashes: Vec<u32> = (0..300u64).map(|i| fmix64(i) as u32).collect();
            let mut signature = Vec::new();
            permutations.signature(&mut hashes.clone(), &mut signature);
            assert_eq!(signature.len(), bands * rows);
            for (k, &least) in signature.iter().enumerate() {
                let (a, b) = (permutations.a[k / LANES][k % LANES], permutations.b[k / LANES][k % LANES]);
                assert_eq!(a % 2, 1);
                let images = hashes.iter().map(|&h| a.wrapping_mul(fmix32(h)).wrapping_add(b));
                assert_eq!(Some(least), images.min());
            }
            permutations.signature(&mut [], &mut signature);
            assert!(signature.iter().all(|&v| v == u32::MAX));
        }
    }

    #[test]
    fn permutations_are_those_of_datasketch() {
        // `datasketch.MinHash(num_perm=4, seed=1).permutations`, version 2.0.0.
        let settings = Settings { bands: 2, rows: 2, ..Settings::default() };
        let permutations = Permutations::new(&settings);
        assert_eq!(permutations.a[0][..4], DATASKETCH_A);
        assert_eq!(permutations.b[0][..4], DATASKETCH_B);
    }

    const DATASKETCH_A: [u32; 4] = [3582191691, 4270784983, 1892572953, 3715639441];
    const DATASKETCH_B: [u32; 4] = [491263, 550290313, 1298508491, 4290846341];

    #[test]
    fn keys_tell_bands_and_values_apart() {
        let signature = [1, 2, 1, 2, 1, 3, 7];
        let keys: Vec<u64> = band_keys(&signature, 2).collect();
        assert_eq!(keys.len(), 3, "an incomplete band has no key");
        assert!(keys[0] != keys[1] && keys[1] != keys[2]);
        assert_ne!(keys[0], band_keys(&[2, 1], 2).next().unwrap());
    }
}
