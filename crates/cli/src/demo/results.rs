//! What came of the run: exported models, their bits per byte, their text.

use anyhow::Context;
use serde::Serialize;
use zamba::sampler::{Sampler, SamplerConfig};
use zamba::{Session, Zamba};
use zamba_data::Shard;
use zamba_eval::{Document, bits_per_byte};

use super::corpus::{Corpus, Part};
use super::folder::Folder;
use super::plan::CONTEXT;
use super::training::Trained;
use crate::common::{self, DeviceArgs, LoadArgs};
use crate::progress::{Progress, Unit};
use crate::text::{self, Finish, Request, Text};
use crate::{interrupt, out};

/// One beginning of code and one of prose.
const PROMPTS: [&str; 2] =
    ["/// Returns the number of bytes in the buffer.\npub fn ", "This crate provides a simple way to"];
/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 96;
/// Sampling of the samples: llama.cpp's defaults.
pub(super) const SAMPLING: &str = "temperature 0.8, top-k 40, top-p 0.95, min-p 0.05";

const MODELS_ARE_THERE: &str =
    "the models are trained and in the folder `run`; run the same command again for the report";

/// A held-out part under every model, in bits per byte.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PartScores {
    pub(super) part: Part,
    pub(super) documents: u64,
    pub(super) bytes: u64,
    pub(super) tokens: u64,
    pub(super) unigram: f64,
    /// All documents in one stream of `gzip -9`.
    pub(super) gzip: f64,
    pub(super) phase1: f64,
    pub(super) phase2: f64,
}

/// What a model wrote.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// 1 or 2.
    pub(super) phase: usize,
    pub(super) prompt: &'static str,
    pub(super) text: String,
}

/// Scores and samples of both phases.
pub(super) struct Results {
    pub(super) bits_per_byte: Vec<PartScores>,
    pub(super) samples: Vec<Sample>,
}

/// Exports the model of each phase, and works with what was exported.
pub(super) fn of_phases(
    folder: &Folder,
    trained: &Trained,
    corpus: &Corpus,
    device: &DeviceArgs,
    seed: u64,
) -> anyhow::Result<Results> {
    let mut scores = Vec::new();
    let mut samples = Vec::new();
    for (phase, checkpoint) in (1..).zip(&trained.checkpoints) {
        interrupt::check(MODELS_ARE_THERE)?;
        let exported = folder.model(phase);
        folder.copy_files(checkpoint, &exported)?;
        let model = common::load(&common::open(&exported, LoadArgs::COPY)?, device, LoadArgs::COPY)?;
        let parts = corpus.held_out.iter().map(|(part, shard, _)| score(&model, *part, shard));
        scores.push(parts.collect::<anyhow::Result<Vec<_>>>()?);
        let text = Text::find(&exported, model.config.vocab_size)?.context(text::NO_TOKENIZER)?;
        for prompt in PROMPTS {
            let written = sample(&model, &text, prompt, seed)?;
            samples.push(Sample { phase, prompt, text: written });
        }
        out::note(&format!("   phase {phase}: {}", exported.display()));
    }
    let bits_per_byte = corpus.held_out.iter().enumerate().map(|(i, (part, shard, baselines))| PartScores {
        part: *part,
        documents: shard.documents(),
        bytes: shard.manifest().source_bytes,
        tokens: shard.tokens(),
        unigram: baselines.unigram,
        gzip: baselines.gzip,
        phase1: scores[0][i],
        phase2: scores[1][i],
    });
    Ok(Results { bits_per_byte: bits_per_byte.collect(), samples })
}

/// Bits per byte of a held-out part, each document from its beginning.
fn score(model: &Zamba, part: Part, shard: &Shard) -> anyhow::Result<f64> {
    let mut progress =
        Progress::new(&format!("scoring {}", part.title()), shard.tokens(), Unit::Items("tokens"));
    let documents = (0..shard.documents()).map(|d| {
        let tokens = shard.doc(d)?;
        // Only the sum of the bytes is known, which is all that is needed.
        anyhow::Ok(Document { tokens, bytes: 0, words: 0 })
    });
    let mut sum = bits_per_byte(model, CONTEXT, documents, |tokens| {
        progress.add(tokens);
        anyhow::Ok(interrupt::check(MODELS_ARE_THERE)?)
    })?;
    sum.bytes = shard.manifest().source_bytes;
    Ok(sum.value())
}

/// Text after a prompt, without end.
fn sample(model: &Zamba, text: &Text, prompt: &str, seed: u64) -> anyhow::Result<String> {
    let tokens = text.encode(prompt)?;
    let ends = text::end_tokens(&model.config, Some(text));
    let mut config = SamplerConfig { seed, ..SamplerConfig::default() };
    config.ban(&ends);
    let mut sampler = Sampler::new(config)?;
    let mut session = Session::new(model, tokens.len() + SAMPLE_TOKENS);
    let request =
        Request { prompt: &tokens, limit: SAMPLE_TOKENS, ends: &ends, stops: &[], text: Some(text) };
    let generated = text::generate(&mut session, &mut sampler, &request, &mut |_, _| Ok(()))?;
    if generated.finish == Finish::Interrupted {
        interrupt::check(MODELS_ARE_THERE)?;
    }
    Ok(generated.text.unwrap_or_default())
}
