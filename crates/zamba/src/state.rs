//! What sequences carry from call to call.

use std::ops::Range;
use std::sync::Arc;

use zamba_kernels::{Buf, CACHE_BLOCK, Device, Dtype, Span};

use crate::model::Zamba;

/// Recurrent and attention state of `slots` sequences of at most `context` tokens.
///
/// Key and value rows are reserved for the whole context; pages that were never written cost no memory.
pub struct State {
    dev: Arc<dyn Device>,
    pub(crate) mamba: Vec<MambaState>,
    pub(crate) sites: Vec<KvState>,
    /// Tokens that each slot has seen.
    lens: Vec<usize>,
    context: usize,
    kv: usize,
    p: usize,
}

/// State of one Mamba layer.
pub(crate) struct MambaState {
    /// Last inputs of the convolution, `[slots, k - 1, e]`.
    pub(crate) window: Buf,
    /// SSM state, `[slots, n, e]`.
    pub(crate) ssm: Buf,
}

/// Keys and values of one use of the shared block, caches as the device arranges them.
pub(crate) struct KvState {
    pub(crate) k: Buf,
    pub(crate) v: Buf,
}

impl State {
    /// Empty state of `model` for `slots` sequences of at most `context` tokens.
    pub fn new(model: &Zamba, slots: usize, context: usize) -> Self {
        let (config, dev) = (&model.config, model.device().clone());
        let (e, kv, p) = (config.d_inner(), config.num_key_value_heads, config.attention_head_dim);
        let f32s = |len| dev.alloc(Dtype::F32, len);
        let mamba = (0..config.num_hidden_layers)
            .map(|_| MambaState {
                window: f32s(slots * (config.mamba_d_conv - 1) * e),
                ssm: f32s(slots * config.mamba_d_state * e),
            })
            .collect();
        let dtype = if model.rounds_attention() { Dtype::Bf16 } else { Dtype::F32 };
        let cache = || dev.alloc(dtype, slots * dev.cache_len(dtype, context, kv, p));
        let sites = config.hybrid_layers().iter().map(|_| KvState { k: cache(), v: cache() }).collect();
        State { dev, mamba, sites, lens: vec![0; slots], context, kv, p }
    }

    /// Tokens that the sequence in `slot` has seen.
    pub fn len(&self, slot: usize) -> usize {
        self.lens[slot]
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.lens.len()
    }

    /// Longest sequence that a slot can hold, in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of one slot that do not grow with its tokens.
    pub fn recurrent_bytes(&self) -> usize {
        self.mamba.iter().map(|m| m.window.bytes() + m.ssm.bytes()).sum::<usize>() / self.slots()
    }

    /// Bytes of keys and values that a token adds, on average over many: a device makes room for several at once.
    pub fn kv_bytes_per_token(&self) -> usize {
        const MANY: usize = 1 << 12;
        let bytes = |b: &Buf| self.dev.cache_len(b.dtype(), MANY, self.kv, self.p) * b.dtype().size() / MANY;
        self.sites.iter().map(|s| bytes(&s.k) + bytes(&s.v)).sum()
    }

    /// Forgets the sequence in `slot`. The next span there must begin at position 0, which ignores
    /// whatever the buffers hold.
    pub fn reset(&mut self, slot: usize) {
        self.lens[slot] = 0;
    }

    /// Makes slot `to` an independent copy of slot `from`.
    pub fn copy_slot(&mut self, to: usize, from: usize) {
        if to == from {
            return;
        }
        let slots = self.lens.len();
        let copy = |buf: &mut Buf, used: usize| {
            let part = buf.len() / slots;
            self.dev.copy_within(buf, to * part, from * part, used.min(part));
        };
        for m in &mut self.mamba {
            copy(&mut m.window, usize::MAX);
            copy(&mut m.ssm, usize::MAX);
        }
        for s in &mut self.sites {
            let used = self.dev.cache_len(s.k.dtype(), self.lens[from], self.kv, self.p);
            copy(&mut s.k, used);
            copy(&mut s.v, used);
        }
        self.lens[to] = self.lens[from];
    }

    /// Describes how the state is arranged. Parts of states with equal layouts can be exchanged.
    pub fn layout(&self) -> String {
        let (layers, sites) = (self.mamba.len(), self.sites.len());
        let slots = self.slots();
        let first = self.mamba.first().map_or((0, 0), |m| (m.window.len() / slots, m.ssm.len() / slots));
        let dtype = self.rows_dtype();
        let block = self.dev.cache_len(dtype, 1, self.kv, self.p);
        format!("1:{layers}x({}+{})f32,{sites}x{}x{}{dtype:?}/{block}", first.0, first.1, self.kv, self.p)
    }

    /// Windows and SSM states of the sequence in `slot`, layer after layer.
    pub fn recurrent(&self, slot: usize) -> Buf {
        let mut out = self.dev.alloc(Dtype::F32, self.recurrent_bytes() / Dtype::F32.size());
        let mut at = 0;
        for buf in self.mamba.iter().flat_map(|m| [&m.window, &m.ssm]) {
            let part = buf.len() / self.lens.len();
            self.dev.copy(&mut out, at, buf, slot * part, part);
            at += part;
        }
        out
    }

    /// Keys and values at `positions` of the sequence in `slot`, site after site: whole runs of
    /// [`CACHE_BLOCK`] positions, the last of which may be incomplete if the sequence ends there.
    ///
    /// # Panics
    /// If the positions do not begin at a run, or lie beyond the end of the sequence.
    pub fn rows(&self, slot: usize, positions: Range<usize>) -> Buf {
        assert!(positions.end <= self.lens[slot], "positions {positions:?} of {}", self.lens[slot]);
        let part = self.elements(&positions);
        let mut out = self.dev.alloc(self.rows_dtype(), 2 * self.sites.len() * part.len());
        for (i, buf) in self.sites.iter().flat_map(|s| [&s.k, &s.v]).enumerate() {
            let slot_at = slot * (buf.len() / self.lens.len());
            self.dev.copy(&mut out, i * part.len(), buf, slot_at + part.start, part.len());
        }
        out
    }

    /// Puts the sequence that [`State::recurrent`] and [`State::rows`] were read from into `slot`, after `len`
    /// tokens. The runs of rows follow one another from position 0.
    ///
    /// # Panics
    /// If the parts do not have the sizes of this state, or not the tokens fit.
    pub fn restore<'a>(
        &mut self,
        slot: usize,
        len: usize,
        recurrent: &Buf,
        rows: impl Iterator<Item = &'a Buf>,
    ) {
        assert!(len <= self.context, "{len} tokens in a context of {}", self.context);
        let slots = self.lens.len();
        let mut at = 0;
        for buf in self.mamba.iter_mut().flat_map(|m| [&mut m.window, &mut m.ssm]) {
            let part = buf.len() / slots;
            self.dev.copy(buf, slot * part, recurrent, at, part);
            at += part;
        }
        assert_eq!(at, recurrent.len(), "size of a recurrent state");
        let mut begin = 0;
        for (i, run) in rows.enumerate() {
            assert!(!self.sites.is_empty() && begin < len, "run {i} of rows lies beyond {len} tokens");
            // All runs but the last are whole, so the size of a run says where it ends.
            let part = run.len() / (2 * self.sites.len());
            for (j, buf) in self.sites.iter_mut().flat_map(|s| [&mut s.k, &mut s.v]).enumerate() {
                let at = slot * (buf.len() / slots) + self.dev.cache_len(buf.dtype(), begin, self.kv, self.p);
                self.dev.copy(buf, at, run, j * part, part);
            }
            begin += CACHE_BLOCK;
        }
        assert!(self.sites.is_empty() || begin >= len, "rows up to {begin} of {len} tokens");
        self.lens[slot] = len;
    }

    /// Elements of a cache that hold `positions` of a slot.
    fn elements(&self, positions: &Range<usize>) -> Range<usize> {
        assert!(positions.start.is_multiple_of(CACHE_BLOCK), "rows from position {}", positions.start);
        let at = |rows| self.dev.cache_len(self.rows_dtype(), rows, self.kv, self.p);
        at(positions.start)..at(positions.end)
    }

    /// Elements of [`State::rows`] of `len` positions.
    pub fn rows_len(&self, len: usize) -> usize {
        2 * self.sites.len() * self.elements(&(0..len)).len()
    }

    /// Type of the elements of [`State::rows`].
    pub fn rows_dtype(&self) -> Dtype {
        self.sites.first().map_or(Dtype::F32, |s| s.k.dtype())
    }

    /// Checks that `spans` continue their slots and moves the slots on.
    pub(crate) fn advance(&mut self, spans: &[Span]) {
        for (j, s) in spans.iter().enumerate() {
            assert!(s.slot < self.slots(), "slot {} of {}", s.slot, self.slots());
            assert!(spans[..j].iter().all(|o| o.slot != s.slot), "slot {} occurs twice in a batch", s.slot);
            assert!(s.pos == 0 || s.pos == self.lens[s.slot], "slot {} is at {}", s.slot, self.lens[s.slot]);
            assert!(
                s.pos + s.len <= self.context,
                "{} tokens in a context of {}",
                s.pos + s.len,
                self.context
            );
        }
        for s in spans {
            self.lens[s.slot] = s.pos + s.len;
        }
    }
}
