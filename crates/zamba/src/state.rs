//! What sequences carry from call to call.

use std::sync::Arc;

use zamba_kernels::{Buf, Device, Dtype, Span};

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
