//! `zamba generate`: text from a prompt.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Serialize;
use zamba::{Session, ZambaConfig};

use crate::common::{self, DeviceArgs, LoadArgs, ModelArgs};
use crate::error::Stop;
use crate::out;
use crate::text::{self, Finish, Generated, Request, SamplingArgs, Text, Timings};

/// Continue a prompt.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Text goes to stdout as it comes, timings to stderr. Without a tokenizer, token ids are \
    printed.\n\nExamples:\n  zamba generate -m zamba-7b -p \"Hey\" -n 10 --temp 0\n  \
    zamba generate -m tiny --tokens 1,20,30 --json"
)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "file", "tokens"]))]
pub(crate) struct Args {
    /// The text to continue.
    #[arg(short = 'p', long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file that holds the text to continue; - is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Token ids to continue, exactly as given.
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// Print one JSON document at the end instead of text as it comes.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    text: Option<&'a str>,
    tokens: &'a [u32],
    prompt_tokens: usize,
    finish: Finish,
    seed: u64,
    timings: Timings,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    args.sampling.check()?;
    let file = args.file.as_deref().map(common::read_text).transpose()?;
    let folder = args.model.folder()?;
    let checkpoint = common::open(&folder, args.load)?;
    let config = &checkpoint.config;
    let text = Text::find(&folder, config.vocab_size)?;
    let prompt = args.prompt_tokens(file.as_deref(), text.as_ref(), config)?;
    let ends = args.sampling.ends(config, text.as_ref());
    let mut sampler = args.sampling.sampler(config.vocab_size)?;
    let context = context(config, prompt.len(), &args.sampling)?;
    let model = common::load(&checkpoint, &args.device, args.load)?;

    let mut session = Session::new(&model, context);
    let request = Request {
        prompt: &prompt,
        limit: args.sampling.n_predict as usize,
        ends: &ends,
        stops: &args.sampling.stop,
        text: text.as_ref(),
    };
    let mut show = |token: Option<u32>, piece: &str| match (token, &text) {
        _ if args.json => Ok(()),
        (Some(id), None) => out::text(&format!("{id} ")),
        _ => out::text(piece),
    };
    let generated = text::generate(&mut session, &mut sampler, &request, &mut show)?;
    let Generated { tokens, text, finish, timings } = &generated;
    if args.json {
        let (text, prompt_tokens, seed) = (text.as_deref(), prompt.len(), sampler.config().seed);
        out::json(&Document { text, tokens, prompt_tokens, finish: *finish, seed, timings: *timings })?;
    } else {
        out::line("")?;
        timings.note();
    }
    match finish {
        Finish::Interrupted => Err(Stop::Interrupted("the text printed so far is what was generated").into()),
        _ => Ok(()),
    }
}

impl Args {
    fn prompt_tokens(
        &self,
        file: Option<&str>,
        text: Option<&Text>,
        config: &ZambaConfig,
    ) -> anyhow::Result<Vec<u32>> {
        let tokens = match (&self.tokens, self.prompt.as_deref().or(file)) {
            (Some(tokens), _) => tokens.clone(),
            (None, Some(words)) => {
                text.with_context(|| format!("{}, or give --tokens", text::NO_TOKENIZER))?.encode(words)?
            }
            (None, None) => vec![],
        };
        if tokens.is_empty() {
            bail!("the prompt has no tokens; give at least one word");
        }
        common::check_tokens(&tokens, config.vocab_size)?;
        Ok(tokens)
    }
}

/// Tokens to reserve: the prompt and what follows, unless the user says otherwise.
pub(crate) fn context(config: &ZambaConfig, prompt: usize, sampling: &SamplingArgs) -> anyhow::Result<usize> {
    let wanted = sampling.ctx.unwrap_or(prompt as u64 + u64::from(sampling.n_predict));
    if (prompt as u64) > wanted {
        bail!("the prompt has {prompt} tokens and --ctx is {wanted}; shorten it or raise --ctx");
    }
    common::check_context(config, wanted)
}
