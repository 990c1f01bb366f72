"""The tiny random Zambas that zamba is compared with, and their weights.

Between them the models vary every field of the config that changes what is computed. Weights are drawn so
that nothing is negligible: attention is far from uniform, gates and activations leave their linear range,
decay rates differ by channel and state, no norm weight is one and no bias is zero. A model initialised as
for training (standard deviation 0.02) would let a wrong activation or a swapped head pass any tolerance.
"""

import json
import os
import zlib

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import ZambaConfig, ZambaForCausalLM

# Fields that all models start from; period 2 and offset 1 put shared blocks at layers 2 and 4 of 5, so that
# the shared weights are used twice and gradients must be summed over both uses.
COMMON = dict(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=5,
    num_attention_heads=2,
    num_key_value_heads=2,
    n_mamba_heads=2,
    mamba_d_state=4,
    attn_layer_period=2,
    attn_layer_offset=1,
)

# What each model changes. `list_as` says how config.json spells the layers: as `save_pretrained` writes it
# ("linear_attention"), in the older spelling ("mamba"), or not at all, so that period and offset decide.
# `draw` picks another set of random weights where the first is so badly conditioned that rounding alone moves
# a gradient visibly (sensitivity.py measures that); some token then has a nearly zero norm somewhere.
MODELS = {
    # The defaults of the real model wherever a tiny one can have them: schedule, 2 heads, 16 states, 4 taps.
    "base": dict(draw=4, num_hidden_layers=8, attn_layer_period=6, attn_layer_offset=4, mamba_d_state=16,
                 intermediate_size=32, list_as=None),
    "one_mamba_head": dict(n_mamba_heads=1, mamba_d_conv=2, vocab_size=41),
    "four_mamba_heads": dict(draw=3, hidden_size=12, n_mamba_heads=4, mamba_d_state=5, mamba_d_conv=3, mamba_expand=3,
                             mamba_dt_rank=3),
    "grouped_kv": dict(draw=1, num_attention_heads=4, num_key_value_heads=2),
    "narrow_heads": dict(draw=1, num_attention_heads=4, num_key_value_heads=1, attention_head_dim=6),
    "wide_heads": dict(draw=5, num_attention_heads=2, attention_head_dim=20, mamba_dt_rank=5),
    "no_conv_bias": dict(draw=2, mamba_conv_bias=False, intermediate_size=32, num_hidden_layers=4,
                         list_as="linear_attention",
                         layers_block_type=["hybrid", "linear_attention", "linear_attention", "hybrid"]),
    "proj_bias": dict(draw=3, mamba_proj_bias=True, mamba_expand=1),
    "untied": dict(draw=4, tie_word_embeddings=False, vocab_size=47),
    "relu_gelu_new": dict(draw=1, hidden_act="relu", hidden_mamba_act="gelu_new"),
    "silu_gelu_tanh": dict(hidden_act="silu", hidden_mamba_act="gelu_pytorch_tanh"),
    "gelu_new_relu": dict(draw=2, hidden_act="gelu_new", hidden_mamba_act="relu"),
    "gelu_tanh_gelu": dict(draw=4, hidden_act="gelu_pytorch_tanh", hidden_mamba_act="gelu"),
    # The first hybrid layer, under whose name the shared block is stored, is not layer 2 here.
    "old_spelling": dict(draw=2, list_as="mamba", num_hidden_layers=6,
                         layers_block_type=["mamba", "hybrid", "hybrid", "mamba", "mamba", "hybrid"]),
    "schedule": dict(draw=6, hidden_size=20, list_as=None, num_hidden_layers=7, attn_layer_period=3,
                     attn_layer_offset=2),
    "no_hybrid": dict(draw=1, layers_block_type=["linear_attention"] * 4, num_hidden_layers=4,
                      list_as="linear_attention"),
    "large_eps": dict(rms_norm_eps=0.05, initializer_range=0.1, intermediate_size=23, eos_token_id=[2, 5]),
}

# Sizes that `scale` multiplies when larger models are wanted; counts of heads, layers and taps stay.
SCALED = ("hidden_size", "intermediate_size", "attention_head_dim", "vocab_size")


def build(name, scale=1, draw=None):
    """The model `name` with random weights, in f32, in eval mode; `draw` numbers the set of weights, by default the
    one that MODELS names."""
    fields = {**COMMON, **MODELS[name]}
    for word in ("list_as", "draw"):
        fields.pop(word, None)
    for key in SCALED:
        if key in fields:
            fields[key] *= scale
    # The sequential scan is the definition; the associative one sums in another order.
    config = ZambaConfig(**fields, use_associative_scan=False)
    config._attn_implementation = "eager"
    model = ZambaForCausalLM(config).float().eval()
    share(model)
    randomise(model, name, MODELS[name].get("draw", 0) if draw is None else draw)
    return model


def hybrids(config):
    """Indices of the hybrid layers."""
    return [i for i, t in enumerate(config.layers_block_type) if t == "hybrid"]


def share(model):
    """Makes all hybrid layers use one shared block.

    transformers 5.23 ties nothing at all when `tie_word_embeddings` is false: it then builds, trains and saves a
    block of its own for each hybrid layer. In Zamba the block is shared whatever the embeddings are.
    """
    layers = [model.model.layers[i] for i in hybrids(model.config)]
    for layer in layers[1:]:
        layer.shared_transf = layers[0].shared_transf


def rng_of(*words):
    """A generator that depends on nothing but `words`."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(" ".join(map(str, words)).encode())))


@torch.no_grad()
def randomise(model, name, draw):
    """Draws every weight from a generator named after model, set and parameter."""
    for key, p in model.named_parameters():
        rng = rng_of(name, draw, key)
        p.copy_(torch.from_numpy(draw_weights(rng, key, tuple(p.shape)).astype(np.float32)))


def draw_weights(draw, key, shape):
    """Random values for the parameter `key`, scaled so that signals neither vanish nor explode."""
    if "final_layernorm" in key:
        # Small, so that the loss stays near that of a guess and gradients near one; of both signs, or with tied
        # embeddings the likeliest next token would nearly always be the last one.
        return 1.2 / shape[0] ** 0.5 * draw.choice([-1.0, 1.0], shape) * draw.uniform(0.5, 1.5, shape)
    if "norm" in key:
        return 1 + 0.3 * draw.standard_normal(shape)
    if key.endswith(".D"):
        return 0.7 + 0.5 * draw.standard_normal(shape)
    if key.endswith("A_log"):
        return draw.uniform(-2.0, 1.5, shape)
    if key.endswith("dt_proj_bias"):
        return draw.uniform(-3.0, 1.0, shape)
    if key.endswith("conv1d.weight"):
        return 0.7 * draw.standard_normal(shape)
    if key.endswith(".bias"):
        return 0.4 * draw.standard_normal(shape)
    if "embed_tokens" in key or "lm_head" in key:
        return draw.standard_normal(shape)
    gain = 1.0
    if any(word in key for word in ("q_proj", "k_proj", "gate_proj")):
        gain = 1.4
    elif "linear.weight" in key:
        gain = 0.7
    elif "out_proj.weight" in key:
        gain = 0.5
    return gain * draw.standard_normal(shape) / shape[-1] ** 0.5


def save(model, name, folder, **how):
    """`save_pretrained`, then the spelling of the layer list that the model asks for in config.json."""
    model.save_pretrained(folder, **how)
    if not model.config.tie_word_embeddings:
        repeat_shared_block(model.config, os.path.join(folder, "model.safetensors"))
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    list_as = MODELS[name].get("list_as", "linear_attention")
    if list_as is None:
        # As the author of a config would write it: what can be derived is left to be derived.
        for derived in ("layers_block_type", "attention_hidden_size", "attention_head_dim"):
            config.pop(derived)
        config["mamba_dt_rank"] = "auto"
    elif list_as == "mamba":
        config["layers_block_type"] = ["mamba" if t == "linear_attention" else t for t in config["layers_block_type"]]
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")


def repeat_shared_block(config, path):
    """Stores the shared block under every hybrid layer; without tied embeddings transformers reads no other form."""
    tensors = load_file(path)
    first, *others = (f"model.layers.{i}.shared_transf." for i in hybrids(config))
    for key in [key for key in tensors if key.startswith(first)]:
        for other in others:
            tensors[key.replace(first, other)] = tensors[key].clone()
    save_file(tensors, path, metadata={"format": "pt"})


def load(folder):
    """Reads a folder as a user would, in f32, and fails on any missing or unexpected tensor or unequal copies of
    the shared block."""
    model, info = ZambaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    bad = {k: v for k, v in info.items() if v}
    if bad:
        raise SystemExit(f"{folder}: transformers reports {bad}")
    layers = [model.model.layers[i].shared_transf.state_dict() for i in hybrids(model.config)]
    for copy in layers[1:]:
        for key, value in copy.items():
            if not torch.equal(value, layers[0][key]):
                raise SystemExit(f"{folder}: hybrid layers have different {key}")
    share(model)
    return model.eval()
