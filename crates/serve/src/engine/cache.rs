//! Beginnings of sequences whose state is kept, so that others that begin alike need not compute it again.
//!
//! Keys and values belong to positions and are shared: they hang in a tree whose nodes are runs of [`CACHE_BLOCK`]
//! tokens. A recurrent state belongs to one place alone: it hangs at the node whose runs lie before it, with the
//! tokens between. So a state may be kept after any token, and costs its own size and not that of all keys before it.
//! Trees of different salts never meet.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Included, Unbounded};

use zamba::State;
use zamba_kernels::{Buf, CACHE_BLOCK};

use super::request::Salt;

type Run = [u32; CACHE_BLOCK];

/// Bookkeeping of a node or a state beside its arrays, roughly.
const OVERHEAD: u64 = 512;

/// Cached beginnings, of at most so many bytes. The least recently used state goes first.
pub(crate) struct Cache {
    budget: u64,
    bytes: u64,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    roots: HashMap<Salt, usize>,
    /// Where each state hangs, by the time of its last use.
    by_use: BTreeMap<u64, Place>,
    clock: u64,
    evictions: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    node: usize,
    tail: Vec<u32>,
}

#[derive(Default)]
struct Node {
    /// Parent, and the run that leads here.
    parent: Option<(usize, Run)>,
    /// Owner, of a root.
    salt: Option<Salt>,
    children: BTreeMap<Run, usize>,
    /// Keys and values of the run that leads here.
    rows: Option<Buf>,
    /// States after the runs up to here and fewer tokens than a run.
    states: BTreeMap<Vec<u32>, Kept>,
}

struct Kept {
    recurrent: Buf,
    /// Keys and values of the tokens since the last run.
    tail_rows: Option<Buf>,
    /// Logits that follow, if they were known.
    logits: Option<Vec<f32>>,
    used: u64,
    bytes: u64,
}

/// What is known of a sequence of tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Tokens after which a state is kept; 0 for none.
    pub(crate) len: usize,
    /// Tokens that some cached sequence begins with, at least [`Found::len`].
    pub(crate) known: usize,
    place: Option<Place>,
}

impl Cache {
    /// An empty cache.
    pub(crate) fn new(budget: u64) -> Self {
        Cache {
            budget,
            bytes: 0,
            nodes: vec![],
            free: vec![],
            roots: HashMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            evictions: 0,
        }
    }

    /// Whether anything is ever kept.
    pub(crate) fn is_on(&self) -> bool {
        self.budget > 0
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// States that are kept.
    pub(crate) fn states(&self) -> usize {
        self.by_use.len()
    }

    /// States that had to go.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// The longest beginning of `tokens` that a state is kept for. Of all tokens a state is of use only with the
    /// logits that follow it, for nothing would be left to compute them from.
    pub(crate) fn find(&self, salt: &Salt, tokens: &[u32]) -> Found {
        let mut found = Found::default();
        let Some(&root) = self.roots.get(salt) else { return found };
        let (mut node, mut at) = (root, 0);
        loop {
            let here = self.node(node);
            let rest = &tokens[at..];
            if let Some((tail, _)) = longest_prefix(&here.states, rest, |tail, kept| {
                at + tail.len() > 0 && (at + tail.len() < tokens.len() || kept.logits.is_some())
            }) {
                found.len = at + tail.len();
                found.place = Some(Place { node, tail: tail.clone() });
            }
            found.known = at + here.known(rest);
            let Some(&child) = run_of(rest).and_then(|run| here.children.get(&run)) else { break };
            (node, at) = (child, at + CACHE_BLOCK);
        }
        found
    }

    /// Whether a state is kept after exactly these tokens, with logits if they are wanted.
    pub(crate) fn has(&self, salt: &Salt, tokens: &[u32], logits: bool) -> bool {
        let Some(mut node) = self.roots.get(salt).copied() else { return false };
        let (runs, tail) = split(tokens);
        for run in runs {
            let Some(&child) = self.node(node).children.get(run) else { return false };
            node = child;
        }
        self.node(node).states.get(tail).is_some_and(|kept| kept.logits.is_some() || !logits)
    }

    /// Puts a state that was found into a slot; gives the logits that follow it, if they are known.
    pub(crate) fn restore(&mut self, found: &Found, state: &mut State, slot: usize) -> Option<Vec<f32>> {
        let place = found.place.as_ref()?;
        self.touch(place);
        let kept = &self.node(place.node).states[&place.tail];
        let path = self.path(place.node);
        let runs = path.iter().filter_map(|id| self.node(*id).rows.as_ref()).chain(&kept.tail_rows);
        state.restore(slot, found.len, &kept.recurrent, runs);
        kept.logits.clone()
    }

    /// Keeps the state of the sequence in `slot`, which has seen exactly `tokens`.
    pub(crate) fn keep(
        &mut self,
        salt: &Salt,
        tokens: &[u32],
        state: &State,
        slot: usize,
        logits: Option<&[f32]>,
    ) {
        assert_eq!(state.len(slot), tokens.len(), "a state is kept after all of its tokens");
        let (_, tail) = split(tokens);
        let whole = tokens.len() - tail.len();
        let rows = |at: usize| state.rows(slot, at..(at + CACHE_BLOCK).min(tokens.len()));
        let entry = Entry {
            recurrent: state.recurrent(slot),
            tail_rows: (!tail.is_empty()).then(|| rows(whole)),
            logits: logits.map(<[f32]>::to_vec),
        };
        self.insert(salt, tokens, entry, &mut |run| rows(run * CACHE_BLOCK));
    }

    /// Adds a state. `rows` gives keys and values of a run that is not there yet.
    pub(crate) fn insert(
        &mut self,
        salt: &Salt,
        tokens: &[u32],
        entry: Entry,
        rows: &mut dyn FnMut(usize) -> Buf,
    ) {
        if !self.is_on() || tokens.is_empty() {
            return;
        }
        let (runs, tail) = split(tokens);
        let mut node = self.root(salt);
        for (i, run) in runs.iter().enumerate() {
            node = self.child(node, run);
            if self.node(node).rows.is_none() {
                let rows = rows(i);
                self.bytes += rows.bytes() as u64;
                self.node_mut(node).rows = Some(rows);
            }
        }
        self.put(Place { node, tail: tail.to_vec() }, entry);
        while self.bytes > self.budget && self.evict() {}
    }

    fn put(&mut self, place: Place, mut entry: Entry) {
        self.clock += 1;
        let used = self.clock;
        if let Some(old) = self.node_mut(place.node).states.remove(&place.tail) {
            self.by_use.remove(&old.used);
            self.bytes -= old.bytes;
            // The same tokens lead to the same logits; whoever does not know them does not make them unknown.
            entry.logits = entry.logits.or(old.logits);
        }
        let bytes = entry.bytes();
        self.bytes += bytes;
        let Entry { recurrent, tail_rows, logits } = entry;
        let kept = Kept { recurrent, tail_rows, logits, used, bytes };
        self.node_mut(place.node).states.insert(place.tail.clone(), kept);
        self.by_use.insert(used, place);
    }

    /// Reads a state that was found: tokens it follows, recurrent part, runs of rows.
    pub(crate) fn read<'a>(&'a self, found: &Found) -> Option<(&'a Buf, Vec<&'a Buf>)> {
        let place = found.place.as_ref()?;
        let kept = &self.node(place.node).states[&place.tail];
        let path = self.path(place.node);
        let mut runs: Vec<&Buf> = path.iter().filter_map(|id| self.node(*id).rows.as_ref()).collect();
        runs.extend(&kept.tail_rows);
        Some((&kept.recurrent, runs))
    }

    /// Gives up the state that was used longest ago, and what only it needed.
    fn evict(&mut self) -> bool {
        let Some((_, place)) = self.by_use.pop_first() else { return false };
        self.evictions += 1;
        if let Some(kept) = self.node_mut(place.node).states.remove(&place.tail) {
            self.bytes -= kept.bytes;
        }
        self.prune(place.node);
        true
    }

    /// Removes a node that holds nothing, and so its parents.
    fn prune(&mut self, mut id: usize) {
        while self.node(id).states.is_empty() && self.node(id).children.is_empty() {
            let Some(node) = self.nodes[id].take() else { return };
            self.free.push(id);
            self.bytes -= OVERHEAD + node.rows.map_or(0, |rows| rows.bytes() as u64);
            if let Some(salt) = node.salt {
                self.roots.remove(&salt);
            }
            let Some((parent, run)) = node.parent else { return };
            self.node_mut(parent).children.remove(&run);
            id = parent;
        }
    }

    fn touch(&mut self, place: &Place) {
        self.clock += 1;
        let now = self.clock;
        let Some(kept) = self.node_mut(place.node).states.get_mut(&place.tail) else { return };
        let before = std::mem::replace(&mut kept.used, now);
        self.by_use.remove(&before);
        self.by_use.insert(now, place.clone());
    }

    fn root(&mut self, salt: &Salt) -> usize {
        if let Some(&root) = self.roots.get(salt) {
            return root;
        }
        let root = self.add(Node { salt: Some(salt.clone()), ..Node::default() });
        self.roots.insert(salt.clone(), root);
        root
    }

    fn child(&mut self, parent: usize, run: &Run) -> usize {
        if let Some(&child) = self.node(parent).children.get(run) {
            return child;
        }
        let child = self.add(Node { parent: Some((parent, *run)), ..Node::default() });
        self.node_mut(parent).children.insert(*run, child);
        child
    }

    fn add(&mut self, node: Node) -> usize {
        self.bytes += OVERHEAD;
        match self.free.pop() {
            Some(id) => {
                self.nodes[id] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        }
    }

    /// Nodes from below the root to `id`.
    fn path(&self, mut id: usize) -> Vec<usize> {
        let mut path = vec![];
        while let Some((parent, _)) = self.node(id).parent {
            path.push(id);
            id = parent;
        }
        path.reverse();
        path
    }

    fn node(&self, id: usize) -> &Node {
        self.nodes[id].as_ref().expect("the tree names no node that is gone")
    }

    fn node_mut(&mut self, id: usize) -> &mut Node {
        self.nodes[id].as_mut().expect("the tree names no node that is gone")
    }
}

/// A state to be kept.
pub(crate) struct Entry {
    pub(crate) recurrent: Buf,
    pub(crate) tail_rows: Option<Buf>,
    pub(crate) logits: Option<Vec<f32>>,
}

impl Entry {
    fn bytes(&self) -> u64 {
        let rows = self.tail_rows.as_ref().map_or(0, Buf::bytes);
        let logits = self.logits.as_ref().map_or(0, |l| size_of_val(l.as_slice()));
        OVERHEAD + (self.recurrent.bytes() + rows + logits) as u64
    }
}

impl Node {
    /// Tokens that `rest` has in common with what hangs here: the neighbours in the order of the tree are the ones
    /// that have the most.
    fn known(&self, rest: &[u32]) -> usize {
        let mut longest = 0;
        let mut run: Run = [0; CACHE_BLOCK];
        let len = rest.len().min(CACHE_BLOCK);
        run[..len].copy_from_slice(&rest[..len]);
        let below = self.children.range(..=run).next_back();
        let above = self.children.range(run..).next();
        for (other, _) in below.into_iter().chain(above) {
            longest = longest.max(common(other, &rest[..len]));
        }
        let below = self.states.range(..=rest[..len].to_vec()).next_back();
        let above = self.states.range(rest[..len].to_vec()..).next();
        for (other, _) in below.into_iter().chain(above) {
            longest = longest.max(common(other, &rest[..len]));
        }
        longest
    }
}

/// Whole runs, and what is left.
fn split(tokens: &[u32]) -> (&[Run], &[u32]) {
    tokens.as_chunks()
}

fn run_of(tokens: &[u32]) -> Option<Run> {
    tokens.first_chunk().copied()
}

/// How many tokens two sequences begin with alike.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The longest key that `query` begins with and that is `good`.
fn longest_prefix<'a, T>(
    map: &'a BTreeMap<Vec<u32>, T>,
    query: &[u32],
    good: impl Fn(&Vec<u32>, &T) -> bool,
) -> Option<(&'a Vec<u32>, &'a T)> {
    let mut query = &query[..query.len().min(CACHE_BLOCK - 1)];
    loop {
        let (key, value) = map.range::<[u32], _>((Unbounded, Included(query))).next_back()?;
        let len = common(key, query);
        if len == key.len() && good(key, value) {
            return Some((key, value));
        }
        // Whatever else `query` begins with is shorter than this key, and lies before it.
        query = if len == key.len() { query.get(..len.checked_sub(1)?)? } else { &query[..len] };
    }
}
