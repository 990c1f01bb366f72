"""Whether a golden file can catch a mistake: known mistakes are made on purpose and must show.

Each entry of MISTAKES alters a model as a wrong implementation would. The change of the logits, as a fraction
of their range, must be far above the tolerance that zamba is held to (1e-5); else the model proves nothing
about that point. The opposite is checked too: rounding noise in the weights must change results far less than
the tolerance, or the comparison would measure the model's chaos.
"""

import copy

import torch
from transformers.activations import ACT2FN
from transformers.models.zamba import modeling_zamba

import models

# Smallest change of the logits that a mistake must cause, as a fraction of their range.
VISIBLE = 5e-3
# The two forms of GELU differ by at most 5e-4 anywhere, so mistaking one for the other shows less. This is why
# the committed files are held to 1e-5 of the logit range, ten times closer than the promise of 1e-4.
VISIBLE_GELU = 3e-5
# Largest relative change of any gradient, and of the loss of any training step, that weight noise of half a unit
# in the last place may cause: a fifth of what zamba is allowed.
NOISE = 2e-5
# Noisy copies of a model that are tried.
COPIES = 2


class TooNoisy(Exception):
    """Rounding alone moves the results of this model visibly."""


def mixers(model):
    """All Mamba mixers."""
    return [m for m in model.modules() if isinstance(m, modeling_zamba.ZambaMambaMixer)]


def shared(model):
    """The shared block, or nothing in a pure Mamba stack. All hybrid layers hold the same tensors."""
    return [m for m in model.modules() if isinstance(m, modeling_zamba.ZambaAttentionDecoderLayer)][:1]


def no_shared_block(model):
    for m in model.modules():
        if isinstance(m, modeling_zamba.ZambaHybridLayer):
            m.linear.weight.zero_()


def gate_and_up_swapped(model):
    for block in shared(model):
        gate, up = block.feed_forward.gate_proj.weight, block.feed_forward.up_proj.weight
        gate[:], up[:] = up.clone(), gate.clone()


def query_heads_rotated(model):
    for block in shared(model):
        q = block.self_attn.q_proj.weight
        q[:] = q.roll(block.self_attn.head_dim, 0)


def key_heads_repeated_in_turn(model):
    """Head j reads key head j % kv instead of j // groups."""
    c = model.config
    groups = c.num_attention_heads // c.num_key_value_heads
    for block in shared(model):
        for w in (block.self_attn.q_proj.weight, block.self_attn.o_proj.weight.T):
            heads = w.view(c.num_key_value_heads, groups, c.attention_head_dim, -1)
            w[:] = heads.transpose(0, 1).reshape(w.shape).clone()


def scale_of_whole_head_width(model):
    for block in shared(model):
        block.self_attn.q_proj.weight *= 0.5**0.5


def attention_uniform(model):
    for block in shared(model):
        block.self_attn.q_proj.weight.zero_()


def concat_in_other_order(model):
    d = model.config.hidden_size
    for block in shared(model):
        for w in (block.input_layernorm.weight, *(getattr(block.self_attn, f"{n}_proj").weight for n in "qkv")):
            w[:] = w.roll(d, -1)


def in_proj_in_halves(model):
    for m in mixers(model):
        for p in m.in_proj.parameters():
            p[:] = torch.cat([p[0::2], p[1::2]])


def mamba_heads_swapped(model):
    for m in mixers(model):
        m.x_proj_weight[:] = m.x_proj_weight.flip(0)


def conv_taps_reversed(model):
    for m in mixers(model):
        m.conv1d.weight[:] = m.conv1d.weight.flip(-1)


def b_and_c_swapped(model):
    n, r = model.config.mamba_d_state, model.config.mamba_dt_rank
    for m in mixers(model):
        w = m.x_proj_weight
        w[:, r:] = w[:, r:].roll(n, 1)


def decay_rates_all_one(model):
    for m in mixers(model):
        m.A_log.zero_()


def no_skip(model):
    for m in mixers(model):
        m.D.zero_()


def no_dt_bias(model):
    for m in mixers(model):
        m.dt_proj_bias.zero_()


def no_conv_bias(model):
    for m in mixers(model):
        m.conv1d.bias.zero_()


def no_proj_bias(model):
    for m in mixers(model):
        m.in_proj.bias.zero_()
        m.out_proj.bias.zero_()


def head_is_the_embedding(model):
    model.lm_head.weight[:] = model.model.embed_tokens.weight


def default_eps(model):
    for m in model.modules():
        if isinstance(m, modeling_zamba.ZambaRMSNorm):
            m.variance_epsilon = 1e-5


# Each mistake and the condition on the config under which it is one.
MISTAKES = [
    (no_shared_block, lambda c: "hybrid" in c.layers_block_type),
    (gate_and_up_swapped, lambda c: "hybrid" in c.layers_block_type),
    (query_heads_rotated, lambda c: "hybrid" in c.layers_block_type),
    (key_heads_repeated_in_turn, lambda c: 1 < c.num_key_value_heads < c.num_attention_heads),
    (scale_of_whole_head_width, lambda c: "hybrid" in c.layers_block_type),
    (attention_uniform, lambda c: "hybrid" in c.layers_block_type),
    (concat_in_other_order, lambda c: "hybrid" in c.layers_block_type),
    (in_proj_in_halves, lambda c: True),
    (mamba_heads_swapped, lambda c: c.n_mamba_heads > 1),
    (conv_taps_reversed, lambda c: True),
    (b_and_c_swapped, lambda c: True),
    (decay_rates_all_one, lambda c: True),
    (no_skip, lambda c: True),
    (no_dt_bias, lambda c: True),
    (no_conv_bias, lambda c: c.mamba_conv_bias),
    (no_proj_bias, lambda c: c.mamba_proj_bias),
    (head_is_the_embedding, lambda c: not c.tie_word_embeddings),
    (default_eps, lambda c: c.rms_norm_eps > 1e-3),
]
ACTS = ("silu", "gelu", "gelu_new", "relu")


class OtherSilu:
    """`torch.nn.functional` with another function in the place of `silu`."""

    def __init__(self, act):
        self.silu = ACT2FN[act]

    def __getattr__(self, name):
        return getattr(torch.nn.functional, name)


def same_act(a, b):
    """Whether two names mean the same function."""
    tanh = ("gelu_new", "gelu_pytorch_tanh")
    return a == b or (a in tanh and b in tanh)


def both_gelu(a, b):
    """Whether two names are the two forms of GELU."""
    return a.startswith("gelu") and b.startswith("gelu")


def act_changes(model, tokens, forward):
    """Logits after each wrong activation, with the change that must be visible."""
    c = model.config
    for act in ACTS:
        if "hybrid" in c.layers_block_type and not same_act(act, c.hidden_act):
            wrong = copy.deepcopy(model)
            for block in wrong.modules():
                if isinstance(block, modeling_zamba.ZambaAttentionDecoderLayer):
                    block.feed_forward.act_fn = ACT2FN[act]
            yield f"mlp {act}", forward(wrong, tokens).logits, both_gelu(act, c.hidden_act)
        if not same_act(act, c.hidden_mamba_act):
            wrong = copy.deepcopy(model)
            for m in mixers(wrong):
                m.activation = act
            yield f"conv {act}", forward(wrong, tokens).logits, both_gelu(act, c.hidden_mamba_act)
        # The gate of the scan is SiLU whatever `hidden_mamba_act` says.
        if act != "silu":
            modeling_zamba.F, kept = OtherSilu(act), modeling_zamba.F
            try:
                yield f"scan gate {act}", forward(model, tokens).logits, False
            finally:
                modeling_zamba.F = kept


@torch.no_grad()
def changes(model, tokens, forward):
    """Name, logits and the visible change of every mistake that applies."""
    for mistake, applies in MISTAKES:
        if applies(model.config):
            wrong = copy.deepcopy(model)
            mistake(wrong)
            yield mistake.__name__, forward(wrong, tokens).logits, VISIBLE
    for name, logits, faint in act_changes(model, tokens, forward):
        yield name, logits, VISIBLE_GELU if faint else VISIBLE


def noisy_copy(model, *words):
    """The model with every weight moved by at most half a unit in its last place."""
    copied = copy.deepcopy(model)
    draw = models.rng_of(*words)
    with torch.no_grad():
        for p in copied.parameters():
            p *= 1 + torch.from_numpy(draw.uniform(-6e-8, 6e-8, tuple(p.shape)))
    return copied


def noise(model, name, golden, run):
    """Changes under weight noise of rounding size: of the logits, as a fraction of their range; of the gradient
    that moves most, relative to its norm, with its name; of the loss of any training step."""
    span = golden["logits"].max() - golden["logits"].min()
    logits, gradient, steps = 0.0, (0.0, ""), 0.0
    for i in range(COPIES):
        noisy = noisy_copy(model, name, "noise", i)
        with torch.no_grad():
            off = run.forward(noisy, golden["tokens"]).logits - golden["logits"]
        logits = max(logits, float(off.abs().max() / span))
        for key, g in run.loss_and_gradients(noisy, golden["tokens"])[1].items():
            want = golden[f"grad.{key}"]
            gradient = max(gradient, (float((g - want).norm() / want.norm()), key))
        if "steps.loss" in golden:
            losses, _ = run.train(noisy, golden["steps.tokens"])
            steps = max(steps, float((losses - golden["steps.loss"]).abs().max()))
    return logits, *gradient, steps


def report(model, name, golden, run):
    """Prints the changes and fails if a mistake could hide. `run` offers `forward`, `loss_and_gradients` and `train`.

    Raises TooNoisy if rounding could look like a mistake.
    """
    logits = golden["logits"]
    span = float(logits.max() - logits.min())
    print(f"{name}: logits span {span:.1f}, loss {float(golden['loss']):.4f}, "
          f"{len(set(golden['greedy.tokens'].tolist()))} different greedy tokens")
    hidden = []
    for mistake, wrong, visible in changes(model, golden["tokens"], run.forward):
        change = float((wrong - logits).abs().max()) / span
        print(f"    {mistake:28} changes the logits by {change:.1e} of their range")
        if not change > visible:
            hidden.append(mistake)
    if hidden:
        raise SystemExit(f"{name}: too small to be seen: {hidden}")
    faint, worst, key, steps = noise(model, name, golden, run)
    print(f"    {'rounding of weights':28} changes the logits by {faint:.1e} of their range, gradients by {worst:.1e} "
          f"at most ({key}), losses of training steps by {steps:.1e}", flush=True)
    if max(worst, steps) > NOISE:
        raise TooNoisy(f"{name}: rounding moves {key} by {worst:.1e} and losses by {steps:.1e}")
