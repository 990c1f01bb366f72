//! The model's part of a step.

use std::collections::HashMap;

use zamba::pool::Var;
use zamba::{Batch, Ctx};

use super::Engine;
use super::request::Logprob;
use super::sequence;

/// Rows whose logits are in memory at a time when a prompt is scored.
const SCORED_ROWS: usize = 256;

/// Tokens `from .. to` of the sequence at place `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) at: usize,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// What a step has found out, by the place of the sequence.
#[derive(Default)]
pub(crate) struct Looked {
    /// Logits after the last token, where all tokens have been seen.
    pub(crate) last: HashMap<usize, Vec<f32>>,
    /// Scores of the tokens that follow, where the prompt is scored.
    pub(crate) scores: HashMap<usize, Vec<Logprob>>,
    /// Hidden states, where the mean is wanted.
    pub(crate) hidden: HashMap<usize, Vec<f32>>,
}

impl Engine {
    pub(super) fn forward(&mut self, work: &[Work]) -> Looked {
        let mut batch = Batch::default();
        for w in work {
            let sequence = &self.active[w.at];
            batch.push(sequence.slot, w.from, &sequence.tokens[w.from..w.to]);
        }
        self.count_work(work);
        let last_rows = batch.last_rows();
        let first_rows: Vec<u32> = batch.spans.iter().map(|s| s.start as u32).collect();
        let mut looked = Looked::default();
        let mut ctx = self.workspace.infer(batch, Some(&mut self.state));
        let hidden = self.model.forward(&mut ctx);

        let ends = |w: &Work| w.to == self.active[w.at].tokens.len();
        let (at, rows): (Vec<usize>, Vec<u32>) =
            work.iter().zip(last_rows).filter(|(w, _)| ends(w)).map(|(w, row)| (w.at, row)).unzip();
        if !rows.is_empty() {
            let picked = ctx.select(&hidden, &rows);
            let logits = self.model.logits(&mut ctx, &picked);
            let v = logits.cols();
            self.host.resize(rows.len() * v, 0.0);
            ctx.read(&logits, 0, &mut self.host);
            looked.last = at.into_iter().zip(self.host.chunks_exact(v).map(<[f32]>::to_vec)).collect();
        }
        for (w, first) in work.iter().zip(first_rows) {
            let sequence = &self.active[w.at];
            if !sequence.is_prefilling() {
                continue;
            }
            if sequence.request.pool {
                looked.hidden.insert(w.at, read_rows(&mut ctx, &hidden, first, w.to - w.from));
            }
            if let Some(top) = sequence.request.score {
                let targets = &sequence.tokens[w.from + 1..(w.to + 1).min(sequence.prompt)];
                let scores = score(&self.model, &mut ctx, &hidden, first, targets, top);
                looked.scores.insert(w.at, scores);
            }
        }
        looked
    }

    fn count_work(&self, work: &[Work]) {
        let (costs, m) = (&self.settings.costs, &self.metrics);
        let (mut bytes, mut flops) = (costs.bytes_per_step, 0);
        for w in work {
            let (from, to) = (w.from as u64, w.to as u64);
            // Token j sees itself and all before it.
            let seen = (from + 1 + to) * (to - from) / 2;
            bytes += costs.bytes_per_sequence + costs.bytes_per_context * to;
            flops += costs.flops_per_token * (to - from) + costs.flops_per_context * seen;
            m.prefill_tokens.inc_by(self.active[w.at].new_of_prompt(w.from, w.to) as u64);
        }
        m.bytes_read.inc_by(bytes);
        m.flops.inc_by(flops);
    }
}

fn read_rows(ctx: &mut Ctx<'_>, hidden: &Var, first: u32, rows: usize) -> Vec<f32> {
    let mut host = vec![0.0; rows * hidden.cols()];
    ctx.read(hidden, first as usize * hidden.cols(), &mut host);
    host
}

/// Scores `targets`, each of which follows a row of hidden states from `first` on.
fn score(
    model: &zamba::Zamba,
    ctx: &mut Ctx<'_>,
    hidden: &Var,
    first: u32,
    targets: &[u32],
    top: usize,
) -> Vec<Logprob> {
    let mut scores = vec![];
    for (i, targets) in targets.chunks(SCORED_ROWS).enumerate() {
        let begin = first + (i * SCORED_ROWS) as u32;
        let rows: Vec<u32> = (begin..begin + targets.len() as u32).collect();
        let picked = ctx.select(hidden, &rows);
        let logits = model.logits(ctx, &picked);
        let mut host = vec![0.0; logits.rows() * logits.cols()];
        ctx.read(&logits, 0, &mut host);
        let nll = ctx.cross_entropy(&logits, targets, 1.0);
        let mut nlls = vec![0.0; targets.len()];
        ctx.read(&nll, 0, &mut nlls);
        scores.extend(sequence::scores(&host, targets, &nlls, top));
    }
    scores
}
