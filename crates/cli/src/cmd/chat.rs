//! `zamba chat`: a conversation, line by line.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use zamba::sampler::Sampler;
use zamba::template::{ChatTemplate, CivilTime, Message};
use zamba::{Session, Zamba};

use crate::common::{self, DeviceArgs, LoadArgs, ModelArgs};
use crate::text::{self, Finish, Request, SamplingArgs, Text};
use crate::{interrupt, out};

/// Talk to a model.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Commands in the conversation: /reset begins a new one, /quit leaves. Ctrl-C ends an answer.\n\
    Lines may also come from a pipe.\n\nExample:\n  zamba chat -m zamba-7b --temp 0.7"
)]
pub(crate) struct Args {
    /// Instructions to the model, before the first turn; needs a chat template.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    args.sampling.check()?;
    let folder = args.model.folder()?;
    let checkpoint = common::open(&folder, args.load)?;
    let config = &checkpoint.config;
    let text = Text::find(&folder, config.vocab_size)?.context(text::NO_TOKENIZER)?;
    let template = template(&folder)?;
    if template.is_none() {
        if args.system.is_some() {
            bail!("--system needs a chat template, and {} has none", folder.display());
        }
        out::note("the model has no chat template: it continues what you write");
    }
    let ends = args.sampling.ends(config, Some(&text));
    args.sampling.sampler(config.vocab_size)?;
    let context = args.sampling.ctx.unwrap_or(config.max_position_embeddings as u64);
    let context = common::check_context(config, context)?;
    let model = common::load(&checkpoint, &args.device, args.load)?;
    let mut chat = Chat {
        args,
        model: &model,
        text: &text,
        template,
        ends,
        session: Session::new(&model, context),
        sampler: None,
        seen: vec![],
        messages: vec![],
    };
    chat.reset();
    chat.talk()
}

/// The chat template of the folder, with a clock for those that state the date.
pub(crate) fn template(folder: &Path) -> anyhow::Result<Option<ChatTemplate>> {
    let mut template = ChatTemplate::from_dir(folder)?;
    if let Some(template) = &mut template {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        template.set_now(CivilTime::from_seconds(now.as_secs() as i64));
    }
    Ok(template)
}

struct Chat<'a> {
    args: &'a Args,
    model: &'a Zamba,
    text: &'a Text,
    template: Option<ChatTemplate>,
    ends: Vec<u32>,
    session: Session<'a>,
    /// Absent at the beginning of a sequence, so that its draws begin anew too.
    sampler: Option<Sampler>,
    /// The sequence so far: what the session has been fed, and at most one token more, the last one chosen.
    seen: Vec<u32>,
    messages: Vec<Message>,
}

impl Chat<'_> {
    fn talk(&mut self) -> anyhow::Result<()> {
        let typing = io::stdin().is_terminal();
        loop {
            if typing {
                out::prompt("> ");
            }
            let Some(line) = read_line()? else { return Ok(()) };
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                "/reset" => self.reset(),
                words => match self.turn(words) {
                    // A conversation survives what is wrong with one turn, unless nobody listens any more.
                    Err(error) if error.downcast_ref::<TurnError>().is_some() => {
                        out::note(&format!("{error:#}"))
                    }
                    result => result?,
                },
            }
        }
    }

    fn reset(&mut self) {
        self.forget();
        self.messages.clear();
        self.messages.extend(self.args.system.iter().map(|words| Message::new("system", words)));
    }

    /// Begins the sequence anew; what was said is still known.
    fn forget(&mut self) {
        self.session.reset();
        self.seen.clear();
        self.sampler = None;
    }

    fn turn(&mut self, words: &str) -> anyhow::Result<()> {
        let all = self.sequence(words)?;
        let vocab = self.model.config.vocab_size;
        common::check_tokens(&all, vocab)?;
        // State cannot be wound back, so a sequence that does not begin with what was fed is fed from its
        // start.
        if !all.starts_with(&self.seen) {
            self.forget();
        }
        let new = all[self.session.len()..].to_vec();
        if new.is_empty() {
            return Err(TurnError::Empty.into());
        }
        if new.len() > self.session.room() {
            let (tokens, room) = (all.len(), self.session.len() + self.session.room());
            self.messages.pop();
            return Err(TurnError::Full { tokens, room }.into());
        }
        let sampler = match &mut self.sampler {
            Some(sampler) => sampler,
            none => none.insert(self.args.sampling.sampler(vocab)?),
        };
        let request = Request {
            prompt: &new,
            limit: self.args.sampling.n_predict as usize,
            ends: &self.ends,
            stops: &self.args.sampling.stop,
            text: Some(self.text),
        };
        // Behind a template's marks an answer often begins with a space, which is no part of what is said.
        let mut begun = self.template.is_none();
        let mut show = |_: Option<u32>, piece: &str| {
            let piece = if begun { piece } else { piece.trim_start() };
            begun |= !piece.is_empty();
            out::text(piece)
        };
        let answer = text::generate(&mut self.session, sampler, &request, &mut show)?;
        out::line("")?;
        if answer.finish == Finish::Interrupted {
            // The request was for this answer; the conversation goes on.
            interrupt::take();
        }
        self.seen = all;
        self.seen.extend(&answer.tokens);
        let said = answer.text.unwrap_or_default();
        self.messages.push(Message::new("assistant", said.trim_start()));
        Ok(())
    }

    /// All tokens of the conversation up to where the next answer begins.
    fn sequence(&mut self, words: &str) -> anyhow::Result<Vec<u32>> {
        let Some(template) = &self.template else {
            // Without a template the conversation is one growing text.
            let mut all = self.seen.clone();
            let line = if all.is_empty() { words.to_owned() } else { format!("\n{words}") };
            all.extend(self.text.tokenizer.encode(&line, all.is_empty())?);
            return Ok(all);
        };
        self.messages.push(Message::new("user", words));
        let rendered = template.render(&self.messages, true).map_err(|e| TurnError::Template(e.to_string()));
        let all = rendered
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(self.text.tokenizer.encode(&text, false)?));
        if all.is_err() {
            self.messages.pop();
        }
        all
    }
}

/// What ends a turn and not the conversation.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error("these words have no tokens; write others")]
    Empty,
    #[error(
        "the conversation has {tokens} tokens and the context {room}: /reset begins a new one, --ctx makes room"
    )]
    Full { tokens: usize, room: usize },
    #[error("{0}: /reset begins a new conversation")]
    Template(String),
}

/// A line from standard input, none at its end. Ctrl-C while nothing happens leaves the program.
fn read_line() -> anyhow::Result<Option<String>> {
    let mut bytes = vec![];
    interrupt::leave_at_once(Some(0));
    let read = io::stdin().lock().read_until(b'\n', &mut bytes);
    interrupt::leave_at_once(None);
    match read.context("cannot read standard input")? {
        0 => Ok(None),
        _ => {
            Ok(Some(String::from_utf8(bytes).context("standard input is not UTF-8 text; convert it first")?))
        }
    }
}
