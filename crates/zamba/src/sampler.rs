//! Choosing the next token from a row of logits.
//!
//! The steps and their order are those of llama.cpp's default sampler chain (`common/sampling.cpp`, `common.h`):
//!
//! 1. `logit_bias` is added;
//! 2. penalties for tokens in the last `repeat_last_n` accepted ones: repeat (a positive logit is divided by it, another
//!    one multiplied), then frequency (times the count) and presence (once) are subtracted;
//! 3. top-k keeps the k highest logits;
//! 4. top-p keeps the smallest set of the most probable tokens whose probabilities add up to at least p;
//! 5. min-p keeps the tokens that are at least `min_p` times as probable as the most probable one;
//! 6. temperature divides the logits that are left, and one is drawn from their softmax.
//!
//! Probabilities in 4 and 5 are those at temperature 1, over the tokens that the earlier steps left. `transformers` and the
//! OpenAI servers apply the temperature first instead; at temperature 1 the two orders are the same.
//!
//! Equal logits rank by id, lowest first, in every step, so the result does not depend on how a sort was done. Where
//! `transformers` keeps every token that ties with the k-th, top-k here keeps exactly k. A NaN logit is never chosen.
//!
//! Draws come from Philox4x32-10 with the seed as key and probabilities are computed in f64 with a portable `exp`, so equal
//! logits and seed give equal tokens on every platform.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use crate::philox::Philox;

/// How to choose tokens. See the module for the order of the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// At least 0 and finite. 0 is greedy: the highest logit after bias and penalties, the lowest id among equals.
    pub temperature: f32,
    /// How many of the highest logits to keep; 0 keeps all.
    pub top_k: usize,
    /// In [0, 1]: probability mass to keep; 1 keeps all. At least one token is always kept.
    pub top_p: f32,
    /// In [0, 1]: smallest probability to keep, relative to the highest; 0 keeps all.
    pub min_p: f32,
    /// Above 0 and finite; 1 is off.
    pub repeat_penalty: f32,
    /// How many of the last accepted tokens the three penalties look at; 0 turns them off, `usize::MAX` looks at all.
    pub repeat_last_n: usize,
    /// Finite; 0 is off.
    pub presence_penalty: f32,
    /// Finite; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids (twice for an id given twice). Finite, or negative infinity to ban the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerConfig {
    /// llama.cpp's defaults: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, penalties off over a window of 64.
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Why a sampler could not be made or could not choose.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// A field of [`SamplerConfig`] is outside its range.
    #[error("sampler option {field} is {value}; it must be {must_be}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it was.
        value: f32,
        /// Its range, in words.
        must_be: &'static str,
    },
    /// `logit_bias` names a token that the row of logits does not have.
    #[error("logit_bias names token {id}, but the model has {vocab} tokens; use ids below that")]
    BiasOutsideVocabulary {
        /// The token.
        id: u32,
        /// Length of the row.
        vocab: usize,
    },
    /// Every logit is NaN or negative infinity.
    #[error(
        "all {vocab} logits are nan or minus infinity; the weights are damaged or logit_bias bans every token"
    )]
    NothingToChoose {
        /// Length of the row.
        vocab: usize,
    },
}

impl SamplerConfig {
    /// Always the highest logit: temperature 0, every filter and penalty off.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Self::default() }
    }

    /// Bans tokens: they will never be chosen.
    pub fn ban(&mut self, ids: &[u32]) {
        self.logit_bias.extend(ids.iter().map(|&id| (id, f32::NEG_INFINITY)));
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`SamplerError::OutOfRange`] names the first field that is outside.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let check = |field, value: f32, ok: bool, must_be| {
            if ok { Ok(()) } else { Err(SamplerError::OutOfRange { field, value, must_be }) }
        };
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "finite and at least 0")?;
        check("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "between 0 and 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        let r = self.repeat_penalty;
        check("repeat_penalty", r, r.is_finite() && r > 0.0, "finite and above 0")?;
        let (presence, frequency) = (self.presence_penalty, self.frequency_penalty);
        check("presence_penalty", presence, presence.is_finite(), "finite")?;
        check("frequency_penalty", frequency, frequency.is_finite(), "finite")?;
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", bias, bias < f32::INFINITY, "finite, or minus infinity")?;
        }
        Ok(())
    }

    /// Whether any penalty can change a logit.
    fn penalises(&self) -> bool {
        self.repeat_last_n > 0
            && (self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0)
    }
}

/// A token that may still be chosen.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
}

/// Highest logit first, then lowest id. Candidates are never NaN, so this is a total order.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Probability relative to that of the highest logit, in [0, 1].
///
/// An infinite highest logit takes everything, shared equally by those that reach it.
fn weight(logit: f32, highest: f32, temperature: f64) -> f64 {
    if logit == highest { 1.0 } else { libm::exp((f64::from(logit) - f64::from(highest)) / temperature) }
}

/// Chooses tokens of one sequence. Cloning it clones the whole state: random stream, window of tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    rng: Philox,
    window: VecDeque<u32>,
    /// How often each token stands in `window`.
    counts: HashMap<u32, u32>,
    /// Scratch, kept between calls so that choosing a token allocates nothing after the first.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random stream and with an empty window.
    ///
    /// # Errors
    /// If `config` is outside its ranges.
    pub fn new(config: SamplerConfig) -> Result<Self, SamplerError> {
        config.validate()?;
        let rng = Philox::new(config.seed);
        Ok(Self { config, rng, window: VecDeque::new(), counts: HashMap::new(), candidates: Vec::new() })
    }

    /// The options in use.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Tells the penalties that `token` is now part of the sequence: for tokens of the prompt that are to count, and for
    /// each chosen token. [`Sampler::sample`] does not do it by itself.
    pub fn accept(&mut self, token: u32) {
        if !self.config.penalises() {
            return;
        }
        if self.window.len() == self.config.repeat_last_n
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.window.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Chooses the next token from one row of logits `[v]`, which is left with bias and penalties applied.
    ///
    /// One draw of the random stream is used, none when greedy.
    ///
    /// # Errors
    /// If a bias names a token outside the row, or nothing can be chosen.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SamplerError> {
        self.apply_bias(logits)?;
        self.apply_penalties(logits);
        if self.config.temperature == 0.0 {
            return argmax(logits).ok_or(SamplerError::NothingToChoose { vocab: logits.len() });
        }
        let highest = self.gather(logits)?;
        self.keep_top_k();
        self.keep_top_p(highest);
        self.keep_min_p(highest);
        Ok(self.draw(highest))
    }

    fn apply_bias(&self, logits: &mut [f32]) -> Result<(), SamplerError> {
        let vocab = logits.len();
        for &(id, bias) in &self.config.logit_bias {
            *logits.get_mut(id as usize).ok_or(SamplerError::BiasOutsideVocabulary { id, vocab })? += bias;
        }
        Ok(())
    }

    /// Each token's own count decides, so the order in which the map is walked does not matter.
    fn apply_penalties(&self, logits: &mut [f32]) {
        let config = &self.config;
        for (&id, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 {
                    *logit / config.repeat_penalty
                } else {
                    *logit * config.repeat_penalty
                };
                *logit -= count as f32 * config.frequency_penalty + config.presence_penalty;
            }
        }
    }

    /// Collects the tokens that can be chosen, in order of id; the highest logit.
    fn gather(&mut self, logits: &[f32]) -> Result<f32, SamplerError> {
        self.candidates.clear();
        self.candidates.reserve(logits.len());
        let mut highest = f32::NEG_INFINITY;
        for (id, &logit) in logits.iter().enumerate() {
            if logit > f32::NEG_INFINITY {
                self.candidates.push(Candidate { logit, id: id as u32 });
                highest = highest.max(logit);
            }
        }
        if self.candidates.is_empty() {
            return Err(SamplerError::NothingToChoose { vocab: logits.len() });
        }
        Ok(highest)
    }

    /// Leaves the candidates ranked when it removes any, in order of id when it does not.
    fn keep_top_k(&mut self) {
        let k = self.config.top_k;
        if k == 0 || k >= self.candidates.len() {
            return;
        }
        self.candidates.select_nth_unstable_by(k - 1, rank);
        self.candidates.truncate(k);
        self.candidates.sort_unstable_by(rank);
    }

    /// Ranks only as long a head of the candidates as it needs: usually a few hundred of tens of thousands.
    fn keep_top_p(&mut self, highest: f32) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|c| weight(c.logit, highest, 1.0)).sum();
        let wanted = f64::from(self.config.top_p) * total;
        let (mut mass, mut ranked) = (0.0, 0);
        while ranked < self.candidates.len() {
            let tail = &mut self.candidates[ranked..];
            let chunk = tail.len().min(256.max(8 * ranked));
            if chunk < tail.len() {
                tail.select_nth_unstable_by(chunk - 1, rank);
            }
            tail[..chunk].sort_unstable_by(rank);
            for (i, candidate) in tail[..chunk].iter().enumerate() {
                mass += weight(candidate.logit, highest, 1.0);
                if mass >= wanted {
                    self.candidates.truncate(ranked + i + 1);
                    return;
                }
            }
            ranked += chunk;
        }
    }

    fn keep_min_p(&mut self, highest: f32) {
        let min_p = f64::from(self.config.min_p);
        if min_p > 0.0 {
            self.candidates.retain(|c| weight(c.logit, highest, 1.0) >= min_p);
        }
    }

    /// Draws from the softmax of what is left, which always contains the highest logit.
    fn draw(&mut self, highest: f32) -> u32 {
        let temperature = f64::from(self.config.temperature);
        let total: f64 = self.candidates.iter().map(|c| weight(c.logit, highest, temperature)).sum();
        let target = self.rng.uniform() * total;
        let mut mass = 0.0;
        let mut chosen = self.candidates[0].id;
        for candidate in &self.candidates {
            let w = weight(candidate.logit, highest, temperature);
            mass += w;
            if w > 0.0 {
                chosen = candidate.id;
            }
            if mass > target {
                break;
            }
        }
        chosen
    }
}

/// Index of the highest value, the lowest among equals; none if all are NaN or negative infinity.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > highest {
            highest = logit;
            best = Some(id as u32);
        }
    }
    best
}

#[cfg(test)]
mod tests;
