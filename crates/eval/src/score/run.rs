//! Takes a tree of items through the model.

use zamba::{Batch, Ctx, State, Workspace, Zamba};

use super::tree::Node;
use super::{Item, Score, Tree};

/// Rows whose logits are in memory at a time.
const ROWS: usize = 256;

/// What scoring may use. Results do not depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens that go through the model at once.
    pub batch_tokens: usize,
    /// Most sequences at once, those included that wait to be gone on from.
    pub slots: usize,
    /// Bytes that their states and caches may take, though never fewer than two have room.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { batch_tokens: 512, slots: 64, bytes: 3 << 30 }
    }
}

/// The sequences that there is room for.
pub(crate) struct Slots {
    pub(crate) state: State,
    batch_tokens: usize,
    /// Levels of beginnings that may wait to be gone on from.
    pub(crate) levels: usize,
}

impl Slots {
    /// Room for sequences of at most `context` tokens.
    pub(crate) fn new(model: &Zamba, limits: &Limits, context: usize) -> Self {
        let probe = State::new(model, 1, 1);
        let each = probe.recurrent_bytes() as u64 + (probe.kv_bytes_per_token() * context) as u64;
        let fit = usize::try_from(limits.bytes / each.max(1)).unwrap_or(usize::MAX);
        let slots = limits.slots.min(fit).max(2);
        let state = State::new(model, slots, context.max(1));
        Slots { state, batch_tokens: limits.batch_tokens.max(1), levels: (slots / 3).clamp(1, 4) }
    }

    /// Tokens that go through the model at once.
    pub(crate) fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    /// How many sequences.
    pub(crate) fn len(&self) -> usize {
        self.state.slots()
    }
}

/// What happens in a run.
pub(crate) enum Event {
    /// So many tokens have gone through the model.
    Tokens(u64),
    /// An item is done.
    Score(usize, Score),
}

/// A part under way.
struct Part {
    node: usize,
    slot: usize,
    /// Place of its next token.
    at: usize,
}

/// Scores items.
pub(crate) struct Scorer<'m> {
    model: &'m Zamba,
    workspace: Workspace,
    slots: Slots,
    free: Vec<usize>,
    ready: Vec<usize>,
    parts: Vec<Part>,
    /// Slot of each node that waits for its children, and how many of these have not begun.
    waiting: Vec<Option<(usize, usize)>>,
    host: Vec<f32>,
}

/// Sums of an item, and rows that are missing.
struct Sum {
    score: Score,
    missing: usize,
}

/// A token whose probability is known.
struct Known {
    nll: f32,
    greedy: bool,
}

impl<'m> Scorer<'m> {
    pub(crate) fn new(model: &'m Zamba, slots: Slots) -> Self {
        let workspace = Workspace::new(model.device().clone());
        let free = (0..slots.len()).rev().collect();
        Scorer { model, workspace, slots, free, ready: vec![], parts: vec![], waiting: vec![], host: vec![] }
    }

    /// Scores all items of a tree. `hear` may end it with an error.
    pub(crate) fn run<E>(
        &mut self,
        items: &[Item],
        tree: &Tree,
        hear: &mut dyn FnMut(Event) -> Result<(), E>,
    ) -> Result<(), E> {
        let empty = Score { loglikelihood: 0.0, greedy: true };
        let mut sums: Vec<Sum> = items.iter().map(|i| Sum { score: empty, missing: i.scored }).collect();
        self.waiting = tree.nodes.iter().map(|_| None).collect();
        self.ready = tree.roots.iter().rev().copied().collect();
        while !(self.ready.is_empty() && self.parts.is_empty()) {
            self.start(tree);
            let (batch, taken) = self.batch(items, tree);
            let tokens = batch.len() as u64;
            for (row, item, known) in self.forward(batch, &taken, tree) {
                debug_assert!(row + 1 < items[item].tokens.len());
                let sum = &mut sums[item];
                sum.score.loglikelihood -= f64::from(known.nll);
                sum.score.greedy &= known.greedy;
                sum.missing -= 1;
                if sum.missing == 0 {
                    hear(Event::Score(item, sum.score))?;
                }
            }
            self.finish(tree);
            hear(Event::Tokens(tokens))?;
        }
        Ok(())
    }

    /// Begins parts while there are slots for them and for what follows from them.
    ///
    /// A part of height h is begun only if h slots stay free. So the children of the part that was begun last
    /// can always begin, and the run never stands still.
    fn start(&mut self, tree: &Tree) {
        let mut tokens: usize = self.parts.iter().map(|p| tree.nodes[p.node].end - p.at).sum();
        while tokens < self.slots.batch_tokens && self.parts.len() < self.slots.len() {
            let fits =
                |id: &usize| self.inherits(&tree.nodes[*id]) + self.free.len() > tree.nodes[*id].height;
            let Some(place) = self.ready.iter().rposition(fits) else { break };
            let id = self.ready.remove(place);
            let node = &tree.nodes[id];
            let slot = self.take_slot(node);
            tokens += node.end - node.start;
            self.parts.push(Part { node: id, slot, at: node.start });
        }
    }

    /// 1 for the last child to begin: it goes on in the slot of its parent.
    fn inherits(&self, node: &Node) -> usize {
        let last = node.parent.and_then(|p| self.waiting[p]).is_some_and(|(_, left)| left == 1);
        usize::from(last)
    }

    fn take_slot(&mut self, node: &Node) -> usize {
        let Some(parent) = node.parent else { return self.free.pop().expect("a slot is free") };
        let (from, left) = self.waiting[parent].expect("a parent waits for its children");
        if left == 1 {
            self.waiting[parent] = None;
            return from;
        }
        self.waiting[parent] = Some((from, left - 1));
        let slot = self.free.pop().expect("a slot is free");
        self.slots.state.copy_slot(slot, from);
        slot
    }

    /// The next tokens of all parts, as far as there is room, and which places they are.
    fn batch(&mut self, items: &[Item], tree: &Tree) -> (Batch, Vec<(usize, usize, usize)>) {
        let mut batch = Batch::default();
        let mut taken = vec![];
        for part in &mut self.parts {
            let node = &tree.nodes[part.node];
            let room = self.slots.batch_tokens - batch.len();
            let to = node.end.min(part.at + room);
            if to > part.at {
                batch.push(part.slot, part.at, &items[node.item].inputs()[part.at..to]);
            }
            taken.push((part.node, part.at, to));
            part.at = to;
        }
        (batch, taken)
    }

    /// Runs a batch and gives place, item and probability of each token that is to be scored.
    fn forward(
        &mut self,
        batch: Batch,
        taken: &[(usize, usize, usize)],
        tree: &Tree,
    ) -> Vec<(usize, usize, Known)> {
        // Rows of the batch that are looked at, and what is wanted of them.
        let mut wants: Vec<(u32, u32, usize, usize)> = vec![];
        let mut first = 0;
        for (node, from, to) in taken {
            let all = &tree.nodes[*node].wants;
            let begin = all.partition_point(|w| w.0 < *from);
            for (row, target, item) in all[begin..].iter().take_while(|w| w.0 < *to) {
                wants.push(((first + row - from) as u32, *target, *row, *item));
            }
            first += to - from;
        }
        let mut ctx = self.workspace.infer(batch, Some(&mut self.slots.state));
        let hidden = self.model.forward(&mut ctx);
        let mut known = vec![];
        let mut rest = wants.as_slice();
        while let Some(end) = end_of_rows(rest) {
            let (these, others) = rest.split_at(end);
            rest = others;
            look(self.model, &mut ctx, &hidden, these, &mut self.host, &mut known);
        }
        known
    }

    /// Ends the parts that are complete.
    fn finish(&mut self, tree: &Tree) {
        let Scorer { parts, free, waiting, ready, .. } = self;
        parts.retain(|part| {
            let node = &tree.nodes[part.node];
            if part.at < node.end {
                return true;
            }
            if node.children.is_empty() {
                free.push(part.slot);
            } else {
                waiting[part.node] = Some((part.slot, node.children.len()));
                ready.extend(node.children.iter().rev());
            }
            false
        });
    }
}

/// Where the wants of the first rows end, as many as there may be at a time.
fn end_of_rows(wants: &[(u32, u32, usize, usize)]) -> Option<usize> {
    let mut rows = 0;
    let mut last = None;
    for (i, want) in wants.iter().enumerate() {
        if last != Some(want.0) {
            rows += 1;
            last = Some(want.0);
        }
        if rows > ROWS {
            return Some(i);
        }
    }
    (!wants.is_empty()).then_some(wants.len())
}

/// Finds the probabilities of tokens `(row of the batch, token, place, item)`, sorted by row and token.
fn look(
    model: &Zamba,
    ctx: &mut Ctx<'_>,
    hidden: &zamba::pool::Var,
    wants: &[(u32, u32, usize, usize)],
    host: &mut Vec<f32>,
    known: &mut Vec<(usize, usize, Known)>,
) {
    let mut rows: Vec<u32> = wants.iter().map(|w| w.0).collect();
    rows.dedup();
    let picked = ctx.select(hidden, &rows);
    let logits = model.logits(ctx, &picked);
    let v = logits.cols();
    host.resize(rows.len() * v, 0.0);
    ctx.read(&logits, 0, host);
    let best: Vec<u32> = host.chunks_exact(v).map(largest).collect();

    // A row may be followed by several tokens: the first of each at once, then the second, and so on.
    let mut pairs: Vec<(u32, u32)> =
        wants.iter().map(|w| (rows.partition_point(|r| *r < w.0) as u32, w.1)).collect();
    pairs.dedup();
    let mut nlls = vec![0.0; pairs.len()];
    for round in rounds(&pairs) {
        let at: Vec<u32> = round.iter().map(|i| pairs[*i].0).collect();
        let targets: Vec<u32> = round.iter().map(|i| pairs[*i].1).collect();
        let part = if at.len() == rows.len() { logits.clone() } else { ctx.select(&logits, &at) };
        let nll = ctx.cross_entropy(&part, &targets, 1.0);
        let mut values = vec![0.0; at.len()];
        ctx.read(&nll, 0, &mut values);
        for (i, value) in round.into_iter().zip(values) {
            nlls[i] = value;
        }
    }
    let mut pair = 0;
    for (row, token, place, item) in wants {
        while (rows[pairs[pair].0 as usize], pairs[pair].1) != (*row, *token) {
            pair += 1;
        }
        let greedy = best[pairs[pair].0 as usize] == *token;
        known.push((*place, *item, Known { nll: nlls[pair], greedy }));
    }
}

/// Indices of sorted pairs: the first of each row, the second of each row that has one, and so on.
fn rounds(pairs: &[(u32, u32)]) -> Vec<Vec<usize>> {
    let mut rounds: Vec<Vec<usize>> = vec![];
    let (mut last, mut depth) = (None, 0);
    for (i, (row, _)) in pairs.iter().enumerate() {
        depth = if last == Some(*row) { depth + 1 } else { 0 };
        last = Some(*row);
        if rounds.len() == depth {
            rounds.push(vec![]);
        }
        rounds[depth].push(i);
    }
    rounds
}

/// Index of the first largest number.
pub(crate) fn largest(x: &[f32]) -> u32 {
    let most = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    x.iter().position(|x| *x == most).unwrap_or(0) as u32
}
