//! CPython's `random.Random`: the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998) and what is drawn from it.

const N: usize = 624;
const M: usize = 397;

/// A generator in the state of `random.Random(seed)`.
pub(crate) struct Random {
    state: [u32; N],
    at: usize,
}

impl Random {
    /// `random.Random(seed)` for a seed that is not negative.
    pub(crate) fn new(seed: u64) -> Self {
        // `init_by_array` with the 32-bit digits of the seed as key, at least one of them.
        let key = [seed as u32, (seed >> 32) as u32];
        let key = if key[1] == 0 { &key[..1] } else { &key[..] };
        let mut state = [0; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = mixed(&state, i).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let next = state[i] ^ mixed(&state, i).wrapping_mul(1_664_525);
            state[i] = next.wrapping_add(key[j]).wrapping_add(j as u32);
            i = advance(&mut state, i);
            j = (j + 1) % key.len();
        }
        for _ in 0..N - 1 {
            let next = state[i] ^ mixed(&state, i).wrapping_mul(1_566_083_941);
            state[i] = next.wrapping_sub(i as u32);
            i = advance(&mut state, i);
        }
        state[0] = 0x8000_0000;
        Random { state, at: N }
    }

    fn next(&mut self) -> u32 {
        if self.at == N {
            self.refill();
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        let s = &mut self.state;
        for k in 0..N {
            let y = (s[k] & 0x8000_0000) | (s[(k + 1) % N] & 0x7fff_ffff);
            s[k] = s[(k + M) % N] ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
        }
        self.at = 0;
    }

    /// `random()`: a multiple of 2⁻⁵³ from 0 to below 1.
    pub(crate) fn random(&mut self) -> f64 {
        let (a, b) = (self.next() >> 5, self.next() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `_randbelow(n)` for `n` from 1 to below 2³².
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let r = (self.next() >> (32 - bits)) as usize;
            if r < n {
                return r;
            }
        }
    }

    /// `sample(range(n), k)`
    ///
    /// # Panics
    /// If `k` is more than `n`.
    pub(crate) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "a sample of {k} out of {n}");
        // Either a pool is drawn from, or numbers that came before are drawn again, as CPython chooses by size.
        let mut small = 21.0;
        if k > 5 {
            small += 4f64.powi((((k * 3) as f64).ln() / 4f64.ln()).ceil() as i32);
        }
        if n as f64 <= small {
            let mut pool: Vec<usize> = (0..n).collect();
            (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect()
        } else {
            let mut chosen: Vec<usize> = vec![];
            for _ in 0..k {
                let mut j = self.below(n);
                while chosen.contains(&j) {
                    j = self.below(n);
                }
                chosen.push(j);
            }
            chosen
        }
    }

    /// An index of `choices(range(n), k=1)`.
    pub(crate) fn choice(&mut self, n: usize) -> usize {
        (self.random() * n as f64) as usize
    }
}

fn mixed(state: &[u32; N], i: usize) -> u32 {
    state[i - 1] ^ (state[i - 1] >> 30)
}

/// The index behind `i`, where the last number also becomes the first.
fn advance(state: &mut [u32; N], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_python() {
        // Made with Python 3.11: `random.Random(1234)` and so on.
        let mut r = Random::new(1234);
        assert_eq!(r.sample(1000, 5), [989, 796, 451, 119, 7]);
        assert_eq!(r.sample(21, 5), [2, 18, 1, 20, 3]);
        assert_eq!(r.sample(22, 6), [11, 7, 0, 19, 18, 21]);
        assert_eq!(r.sample(277, 7), [247, 237, 76, 46, 93, 58, 7]);
        assert_eq!(r.sample(278, 7), [257, 249, 127, 33, 277, 238, 35]);
        assert_eq!(r.sample(5, 5), [4, 0, 2, 3, 1]);
        assert_eq!(r.random(), 0.824381668541078);
        let drawn: Vec<usize> = (0..6).map(|_| r.choice(50)).collect();
        assert_eq!(drawn, [3, 15, 42, 13, 32, 10]);
        (0..2000).for_each(|_| {
            r.random();
        });
        assert_eq!(r.random(), 0.40189765346970663);
        let mut r = Random::new(0);
        assert_eq!(r.random(), 0.8444218515250481);
        let mut r = Random::new((1 << 40) + 7);
        assert_eq!(r.random(), 0.6137037779936511);
    }
}
