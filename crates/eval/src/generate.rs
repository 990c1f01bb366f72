//! Greedy generation of many texts at once.

use zamba::tokenizer::{Tokenizer, TokenizerError};
use zamba::{Batch, Workspace, Zamba};

use crate::score::Slots;
use crate::score::largest;

/// A text to be continued.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// The text ends before the first of these.
    pub(crate) until: Vec<String>,
    pub(crate) max_tokens: usize,
}

/// What happens in a run.
pub(crate) enum Event {
    /// So many tokens have gone through the model.
    Tokens(u64),
    /// The text of a prompt is complete.
    Text(usize, String),
}

/// A text under way.
struct Open {
    prompt: usize,
    slot: usize,
    /// Tokens of the prompt that the model has seen.
    seen: usize,
    new: Vec<u32>,
}

/// Continues prompts until a stop, a token of `ends` or the most tokens.
pub(crate) struct Generator<'m> {
    model: &'m Zamba,
    tokenizer: &'m Tokenizer,
    workspace: Workspace,
    slots: Slots,
    ends: Vec<u32>,
}

impl<'m> Generator<'m> {
    pub(crate) fn new(model: &'m Zamba, tokenizer: &'m Tokenizer, slots: Slots, ends: Vec<u32>) -> Self {
        let workspace = Workspace::new(model.device().clone());
        Generator { model, tokenizer, workspace, slots, ends }
    }

    /// Runs all prompts. `hear` may end it with an error.
    pub(crate) fn run<E: From<TokenizerError>>(
        &mut self,
        prompts: &[Prompt],
        hear: &mut dyn FnMut(Event) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut free: Vec<usize> = (0..self.slots.len()).collect();
        let mut next = 0;
        let mut open: Vec<Open> = vec![];
        while next < prompts.len() || !open.is_empty() {
            while next < prompts.len()
                && let Some(slot) = free.pop()
            {
                open.push(Open { prompt: next, slot, seen: 0, new: vec![] });
                next += 1;
            }
            let tokens = self.step(prompts, &mut open);
            let mut going = vec![];
            for text in open {
                match self.ended(&prompts[text.prompt], &text)? {
                    Some(complete) => {
                        free.push(text.slot);
                        hear(Event::Text(text.prompt, complete))?;
                    }
                    None => going.push(text),
                }
            }
            open = going;
            hear(Event::Tokens(tokens))?;
        }
        Ok(())
    }

    /// Takes every text on by a token, or by a piece of its prompt. Returns the tokens that were computed.
    fn step(&mut self, prompts: &[Prompt], open: &mut [Open]) -> u64 {
        let (mut batch, mut fed) = (Batch::default(), vec![]);
        for (i, text) in open.iter_mut().enumerate() {
            let prompt = &prompts[text.prompt].tokens;
            let room = self.slots.batch_tokens().saturating_sub(batch.len());
            let left = prompt.len() - text.seen;
            match text.new.last() {
                Some(last) => batch.push(text.slot, prompt.len() + text.new.len() - 1, &[*last]),
                // The piece may be short, but a text never waits for ever.
                None if room > 0 => {
                    let end = text.seen + left.min(room);
                    batch.push(text.slot, text.seen, &prompt[text.seen..end]);
                    text.seen = end;
                }
                None => continue,
            }
            if text.seen == prompt.len() {
                fed.push((i, batch.len() as u32 - 1));
            }
        }
        let tokens = batch.len() as u64;
        let mut ctx = self.workspace.infer(batch, Some(&mut self.slots.state));
        let hidden = self.model.forward(&mut ctx);
        if fed.is_empty() {
            return tokens;
        }
        let rows: Vec<u32> = fed.iter().map(|(_, row)| *row).collect();
        let picked = ctx.select(&hidden, &rows);
        let logits = self.model.logits(&mut ctx, &picked);
        let mut host = vec![0.0; rows.len() * logits.cols()];
        ctx.read(&logits, 0, &mut host);
        for ((i, _), row) in fed.iter().zip(host.chunks_exact(logits.cols())) {
            open[*i].new.push(largest(row));
        }
        tokens
    }

    /// The text, if it is complete: without the stop and without special tokens.
    fn ended(&self, prompt: &Prompt, text: &Open) -> Result<Option<String>, TokenizerError> {
        let Some(last) = text.new.last() else { return Ok(None) };
        let full = text.new.len() >= prompt.max_tokens || self.ends.contains(last);
        let mut words = self.tokenizer.decode(&text.new, true)?;
        let mut stopped = false;
        // One stop after the other, as there: what the first one cuts off hides later ones.
        for stop in prompt.until.iter().filter(|s| !s.is_empty()) {
            if let Some(at) = words.find(stop.as_str()) {
                words.truncate(at);
                stopped = true;
            }
        }
        Ok((full || stopped).then_some(words))
    }
}
