//! Text of a model: its tokenizer, and generation as `generate` and `chat` do it.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use zamba::sampler::{Sampler, SamplerConfig};
use zamba::session::PREFILL_CHUNK;
use zamba::tokenizer::{Tokenizer, TokenizerError};
use zamba::writer::Writer;
use zamba::{Session, ZambaConfig};

use crate::error::Stop;
use crate::{interrupt, out};

/// A tokenizer beside the model that it belongs to.
pub(crate) struct Text {
    pub(crate) tokenizer: Tokenizer,
}

/// What to say where text is asked for and cannot be had.
pub(crate) const NO_TOKENIZER: &str = "the model has no tokenizer.json; add it to the folder";

impl Text {
    /// The tokenizer of a model folder, if it has one. It may not know ids that the model of `vocab` tokens
    /// does not have.
    pub(crate) fn find(folder: &Path, vocab: usize) -> anyhow::Result<Option<Self>> {
        match Tokenizer::from_dir(folder) {
            Ok(tokenizer) => {
                let (max, name) = (tokenizer.max_id(), folder.display());
                anyhow::ensure!(
                    (max as usize) < vocab,
                    "{name}: tokenizer.json goes up to id {max} and the model has {vocab} tokens; use the model's own tokenizer"
                );
                tokenizer.warnings().iter().for_each(|warning| out::note(&format!("warning: {warning}")));
                Ok(Some(Text { tokenizer }))
            }
            Err(TokenizerError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Token ids of a text, with BOS where the tokenizer's files ask for it.
    pub(crate) fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, true)?)
    }
}

/// The ids that end a text: what `generation_config.json` says, or else `config.json`, or else the tokenizer.
pub(crate) fn end_tokens(config: &ZambaConfig, text: Option<&Text>) -> Vec<u32> {
    let tokenizer = text.map(|text| &text.tokenizer);
    if let Some(ids) = tokenizer.and_then(Tokenizer::generation_eos_ids) {
        return ids.to_vec();
    }
    match config.eos_token_id.as_slice() {
        [] => tokenizer.map(|t| t.eos_ids().to_vec()).unwrap_or_default(),
        ids => ids.to_vec(),
    }
}

/// How tokens are chosen and when to stop.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Most tokens to generate.
    #[arg(short = 'n', long = "n-predict", value_name = "N", default_value_t = 256)]
    pub(crate) n_predict: u32,
    /// Temperature; 0 always takes the most likely token.
    #[arg(long, value_name = "T", default_value_t = 0.8, allow_negative_numbers = true)]
    temp: f32,
    /// Keep the K most likely tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Keep the most likely tokens that together have probability P; 1 keeps all.
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the most likely one; 0 keeps all.
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_negative_numbers = true)]
    min_p: f32,
    /// Divide the logits of tokens seen lately by this; 1 is off.
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// How many of the last tokens penalties look at; -1 is all.
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..))]
    repeat_last_n: i64,
    /// Subtract this from the logits of tokens seen lately.
    #[arg(long, value_name = "A", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract this from the logits of tokens seen lately, times how often.
    #[arg(long, value_name = "A", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Add V to the logit of token ID; -inf bans it. Repeatable.
    #[arg(long, value_name = "ID=V", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// End before this text. Repeatable.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on after a token that ends a text. Which token comes next is not affected.
    #[arg(long)]
    ignore_eos: bool,
    /// Seed of the draws [default: another one every time].
    #[arg(short = 's', long, value_name = "N")]
    seed: Option<u64>,
    /// Tokens of memory to reserve [default: as many as the prompt and --n-predict need].
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ctx: Option<u64>,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected ID=V such as 15=-1.5".to_owned())
}

impl SamplingArgs {
    /// The sampler, after its options have been checked, and the seed that it draws from.
    pub(crate) fn sampler(&self, vocab: usize) -> anyhow::Result<Sampler> {
        let config = SamplerConfig {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: usize::try_from(self.repeat_last_n).unwrap_or(usize::MAX),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(fresh_seed),
        };
        if let Some((id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            anyhow::bail!(
                "--logit-bias names token {id}, but the model has {vocab} tokens; use ids below that"
            );
        }
        Sampler::new(config).map_err(|e| Stop::Usage(e.to_string()).into())
    }

    /// Checks what can be checked before a model is loaded.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.sampler(usize::MAX).map(drop)
    }

    /// The ids at which generation ends, none with `--ignore-eos`.
    pub(crate) fn ends(&self, config: &ZambaConfig, text: Option<&Text>) -> Vec<u32> {
        if self.ignore_eos { vec![] } else { end_tokens(config, text) }
    }
}

/// Differs from run to run; good enough to begin a random stream with.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20) ^ (u64::from(std::process::id()) << 40)
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Finish {
    /// As many tokens as asked for, or no more room in the context.
    Length,
    /// A token that ends a text.
    Eos,
    /// A stop string.
    Stop,
    /// Ctrl-C.
    Interrupted,
}

/// Speeds in the words of llama.cpp's server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Timings {
    pub(crate) prompt_n: usize,
    pub(crate) prompt_ms: f64,
    pub(crate) prompt_per_second: f64,
    pub(crate) predicted_n: usize,
    pub(crate) predicted_ms: f64,
    pub(crate) predicted_per_second: f64,
}

impl Timings {
    fn new(prompt_n: usize, prompt: Duration, predicted_n: usize, predicted: Duration) -> Self {
        let rate = |n: usize, time: Duration| n as f64 / time.as_secs_f64().max(1e-9);
        Timings {
            prompt_n,
            prompt_ms: prompt.as_secs_f64() * 1e3,
            prompt_per_second: rate(prompt_n, prompt),
            predicted_n,
            predicted_ms: predicted.as_secs_f64() * 1e3,
            predicted_per_second: rate(predicted_n, predicted),
        }
    }

    /// Prints them to stderr as llama-cli does.
    pub(crate) fn note(&self) {
        let row = |name: &str, ms: f64, n: usize, rate: f64| {
            let per = ms / (n.max(1) as f64);
            let rates = format!("{per:8.2} ms per token, {rate:8.2} tokens per second");
            format!("{name} time = {ms:10.2} ms / {n:5} tokens ({rates})")
        };
        out::note(&row("prompt eval", self.prompt_ms, self.prompt_n, self.prompt_per_second));
        out::note(&row("       eval", self.predicted_ms, self.predicted_n, self.predicted_per_second));
    }
}

/// A finished generation.
#[derive(Debug)]
pub(crate) struct Generated {
    /// New tokens only, the one that ended the text included.
    pub(crate) tokens: Vec<u32>,
    /// Their text, without stop string and special tokens. None without a tokenizer.
    pub(crate) text: Option<String>,
    pub(crate) finish: Finish,
    pub(crate) timings: Timings,
}

/// What [`generate`] needs beside the session.
pub(crate) struct Request<'a> {
    /// Tokens to append to the session before the first new one: at least one, and no more than it has room
    /// for.
    pub(crate) prompt: &'a [u32],
    /// Most new tokens.
    pub(crate) limit: usize,
    /// Tokens that end the text.
    pub(crate) ends: &'a [u32],
    /// Texts that end the text.
    pub(crate) stops: &'a [String],
    /// Makes text of the tokens, if there is a tokenizer.
    pub(crate) text: Option<&'a Text>,
}

/// Feeds the prompt and generates. `show` receives each new token with the text that became certain by it;
/// the end of the text comes without a token. The last token is not fed to the session.
pub(crate) fn generate(
    session: &mut Session<'_>,
    sampler: &mut Sampler,
    request: &Request<'_>,
    show: &mut dyn FnMut(Option<u32>, &str) -> anyhow::Result<()>,
) -> anyhow::Result<Generated> {
    let mut writer = match request.text {
        Some(text) => Some(Writer::new(&text.tokenizer, request.prompt, request.stops)?),
        None => None,
    };
    let room = session.room() - request.prompt.len();
    let start = Instant::now();
    request.prompt.iter().for_each(|&token| sampler.accept(token));
    let (head, tail) = request.prompt.split_at((request.prompt.len() - 1) / PREFILL_CHUNK * PREFILL_CHUNK);
    for part in head.chunks(PREFILL_CHUNK).take_while(|_| !interrupt::requested()) {
        session.feed(part);
    }
    if interrupt::requested() {
        let timings = Timings::new(session.len(), start.elapsed(), 0, Duration::ZERO);
        let text = writer.map(Writer::into_text);
        return Ok(Generated { tokens: vec![], text, finish: Finish::Interrupted, timings });
    }
    let mut logits = session.feed(tail);
    let prompt_time = start.elapsed();
    // The context bounds the whole text, although its last token is never fed.
    let limit = request.limit.min(room);
    let start = Instant::now();
    let mut tokens = vec![];
    let finish = loop {
        if interrupt::requested() {
            break Finish::Interrupted;
        }
        if tokens.len() == limit {
            break Finish::Length;
        }
        let token = sampler.sample(logits).context("cannot choose a token")?;
        sampler.accept(token);
        tokens.push(token);
        if request.ends.contains(&token) {
            break Finish::Eos;
        }
        let (shown, stopped) = match &mut writer {
            Some(writer) => writer.push(token)?,
            None => (String::new(), false),
        };
        show(Some(token), &shown)?;
        if stopped {
            break Finish::Stop;
        }
        if tokens.len() == limit {
            break Finish::Length;
        }
        logits = session.feed(&[token]);
    };
    if let Some(writer) = &mut writer {
        let rest = writer.finish()?;
        show(None, &rest)?;
    }
    let timings = Timings::new(request.prompt.len(), prompt_time, tokens.len(), start.elapsed());
    Ok(Generated { tokens, text: writer.map(Writer::into_text), finish, timings })
}
