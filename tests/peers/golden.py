"""Golden files: what transformers computes for the tiny models of models.py.

    golden.py --out DIR [--scale N] [--only NAME ...]   write them
    golden.py --check DIR                               compute them again and compare with DIR

One folder per model, as `save_pretrained` writes it, with `golden.safetensors` beside the weights:

    tokens [2, T] i64          two rows, no padding
    logits [2, T, V] f32       eval mode, no cache
    loss [1] f32               mean cross-entropy of tokens[:, 1:], as `labels=` computes it
    grad.<parameter> f32       gradient of that loss, for every parameter
    greedy.prompt [1, 8] i64   and greedy.tokens [64] i64, the argmax continuation
    steps.tokens [10, 2, T]    the batch of each training step (a larger model with ReLU has no steps)
    steps.loss [10] f32        loss before each of ten AdamW steps
    steps.grad_norm [10] f32   global norm before clipping
    steps.final [P, 2] f64     sum and Euclidean norm of each parameter after the tenth step, in the order of
                               the sorted parameter names

`layouts/` holds one model saved in four other ways, each with the tokens and logits of its own weights.

Traps of the peer, and how they are avoided:
* `nn.Embedding(padding_idx=0)` gives row 0 no gradient as an input. That is a convention for padding, not
  part of the model, so token 0 never stands in a batch whose gradient is taken.
* The scan with a cache starts from zero state when more than one token follows a non-empty cache, so there is
  no chunked prefill, and greedy text is computed by running the whole sequence again for each token.
* A stack without a shared block makes `DynamicCache` fail, hence `use_cache=False` everywhere.
* Without tied embeddings it does not share the shared block either (see `models.share`).
* Right padding corrupts the recurrent state; all rows are full.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import models
import sensitivity

TOKENS = 24
STEPS = 10
GREEDY = 64
# Less than this fraction of the logit range between the first and second candidate would let rounding decide
# which one greedy decoding takes; such a prompt is replaced by the next one.
MARGIN = 1e-3
# Fewer different tokens than this would be a short loop, which even a broken state may follow.
VARIETY = 8
ADAMW = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
WEIGHT_DECAY = 0.1
NO_DECAY = ("norm", ".bias", "A_log", ".D", "dt_proj_bias")


def draw_tokens(draw, vocab, shape):
    """Random ids without 0, the padding id."""
    return torch.from_numpy(draw.integers(1, vocab, shape))


def forward(model, tokens, labels=None):
    """One forward without a cache."""
    return model(tokens, labels=labels, use_cache=False)


def loss_and_gradients(model, tokens):
    """The loss of `tokens` and each parameter's gradient by name."""
    model.zero_grad()
    loss = forward(model, tokens, labels=tokens).loss
    loss.backward()
    gradients = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            raise SystemExit(f"{name} has no gradient")
        gradients[name] = p.grad.clone()
    return loss.detach(), gradients


@torch.no_grad()
def greedy(model, name):
    """A prompt and its 64 greedy tokens, none of them decided by rounding."""
    vocab = model.config.vocab_size
    for attempt in range(200):
        prompt = draw_tokens(models.rng_of(name, "prompt", attempt), vocab, (1, 8))
        ids, sure = prompt, True
        for _ in range(GREEDY):
            logits = forward(model, ids).logits[0, -1]
            first, second = logits.topk(2).values
            sure = (first - second) > MARGIN * (logits.max() - logits.min())
            if not sure:
                break
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        text = ids[0, 8:].clone()
        if sure and len(text.unique()) >= VARIETY:
            return prompt, text
    raise SystemExit(f"{name}: no prompt gives a varied text without a near tie")


def train(model, batches):
    """Ten clipped AdamW steps; the model is changed."""
    decay = [p for n, p in model.named_parameters() if not any(w in n for w in NO_DECAY)]
    rest = [p for n, p in model.named_parameters() if any(w in n for w in NO_DECAY)]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, **ADAMW)
    losses, norms = [], []
    for tokens in batches:
        optimiser.zero_grad()
        loss = forward(model, tokens, labels=tokens).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        losses.append(loss.detach())
        optimiser.step()
    return torch.stack(losses), torch.stack(norms)


def checksum(p):
    """Sum and Euclidean norm in f64."""
    p = p.detach().double()
    return torch.stack([p.sum(), p.norm()])


def golden_of(model, name, scale):
    """Every golden tensor of one model."""
    vocab, length = model.config.vocab_size, TOKENS * scale
    tokens = draw_tokens(models.rng_of(name, "tokens"), vocab, (2, length))
    out = {"tokens": tokens, "logits": forward(model, tokens).logits.detach()}
    loss, gradients = loss_and_gradients(model, tokens)
    out["loss"] = loss.view(1)
    out.update({f"grad.{k}": v for k, v in gradients.items()})
    # The gradient of a ReLU jumps at zero. Among the many activations of ten steps of a larger model some lie so
    # close to it that rounding decides, and from there on two correct programs differ.
    if scale == 1 or "relu" not in (model.config.hidden_act, model.config.hidden_mamba_act):
        batches = draw_tokens(models.rng_of(name, "steps"), vocab, (STEPS, 2, length))
        trained = copy.deepcopy(model)
        out["steps.tokens"] = batches
        out["steps.loss"], out["steps.grad_norm"] = train(trained, batches)
        out["steps.final"] = torch.stack([checksum(p) for _, p in sorted(trained.named_parameters())])
    out["greedy.prompt"], out["greedy.tokens"] = greedy(model, name)
    sensitivity.report(model, name, out, sys.modules[__name__])
    return {k: v.contiguous() for k, v in out.items()}


def write_golden(tensors, folder):
    """`golden.safetensors` with the versions that made it, as one entry: several come in any order."""
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    save_file(tensors, os.path.join(folder, "golden.safetensors"), metadata={"made_by": made_by})


def write_model(name, out, scale):
    """One model's folder. Sets of weights for which rounding alone shows are passed over; for the committed size
    models.py names the set that is used, so that the choice does not depend on a machine."""
    folder = os.path.join(out, name)
    for draw in [None] if scale == 1 else range(20):
        os.makedirs(folder)
        models.save(models.build(name, scale, draw), name, folder)
        # What is measured is what a reader of the folder gets, spelling of the config included.
        model = models.load(folder)
        try:
            return write_golden(golden_of(model, name, scale), folder)
        except sensitivity.TooNoisy as why:
            print(why, flush=True)
            shutil.rmtree(folder)
    raise SystemExit(f"{name}: no set of weights will do")


def old_layout(tensors, config):
    """The tensor names of checkpoints made before Zamba was merged into transformers: the shared block stands
    alone, linears are numbered by use, and `gate_proj` and `up_proj` have each other's meaning."""
    hybrids = models.hybrids(config)
    swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
    out = {}
    for key, value in tensors.items():
        part = key.split(".")
        if "shared_transf" in part:
            words = [swap.get(w, w) for w in part[part.index("shared_transf") + 1:]]
            key = ".".join(["model", "block", *words])
        elif "linear" in part:
            key = f"model.linear_layers.{hybrids.index(int(part[2]))}.weight"
        elif part[1] == "layers":
            rest = [w for w in part[3:] if w != "mamba_decoder"]
            key = ".".join(["model", "mamba_layers", part[2], *rest])
        out[key] = value
    return out


def write_layouts(out, scale):
    """One model in the layouts that a reader must know besides a single f32 file."""
    name = "one_mamba_head"
    tokens = draw_tokens(models.rng_of(name, "tokens"), models.build(name, scale).config.vocab_size, (2, TOKENS))
    for layout in ("old", "sharded", "bf16", "f16"):
        folder = os.path.join(out, "layouts", layout)
        os.makedirs(folder)
        model = models.build(name, scale)
        if layout in ("bf16", "f16"):
            model = model.to(torch.bfloat16 if layout == "bf16" else torch.float16)
        models.save(model, name, folder, **({"max_shard_size": "20KB"} if layout == "sharded" else {}))
        # In f32 from the stored, rounded weights: what is tested is reading, not 16-bit arithmetic.
        logits = forward(models.load(folder), tokens).logits.detach()
        write_golden({"tokens": tokens, "logits": logits}, folder)
        if layout == "old":
            path = os.path.join(folder, "model.safetensors")
            save_file(old_layout(load_file(path), model.config), path, metadata={"format": "pt"})


def write_all(out, scale, only):
    """All folders under `out`, which must not exist."""
    os.makedirs(out)
    for name in only or models.MODELS:
        write_model(name, out, scale)
    if not only:
        write_layouts(out, scale)


def files_under(folder):
    """Relative paths of all files."""
    return sorted(
        os.path.relpath(os.path.join(d, f), folder) for d, _, names in os.walk(folder) for f in names
    )


def differences(new, old):
    """Lines that say where the files `new` and `old` differ by more than another processor's rounding."""
    with safe_open(new, "pt") as a, safe_open(old, "pt") as b:
        if set(a.keys()) != set(b.keys()):
            return [f"{old}: other tensors: {sorted(set(a.keys()) ^ set(b.keys()))}"]
        lines = []
        for key in a.keys():
            x, y = a.get_tensor(key), b.get_tensor(key)
            if x.shape != y.shape or x.dtype != y.dtype:
                lines.append(f"{old}: {key}: {x.dtype}{tuple(x.shape)}, committed {y.dtype}{tuple(y.shape)}")
                continue
            exact = not old.endswith("golden.safetensors") or not x.is_floating_point()
            x, y = x.double(), y.double()
            worst = float((x - y).abs().max()) if x.numel() else 0.0
            # Sums of many terms of both signs are compared on the scale of the norm beside them.
            limit = 0.0 if exact else 2e-5 * max(float(y.abs().max()), 1e-3)
            if worst > limit:
                lines.append(f"{old}: {key}: differs by {worst:.3g}, allowed {limit:.3g}")
        return lines


def check(committed):
    """Computes everything again and compares it with `committed`."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = os.path.join(scratch, "golden")
        write_all(fresh, 1, None)
        lines = []
        if files_under(fresh) != files_under(committed):
            lines.append(f"other files: {sorted(set(files_under(fresh)) ^ set(files_under(committed)))}")
        for path in sorted(set(files_under(fresh)) & set(files_under(committed))):
            new, old = os.path.join(fresh, path), os.path.join(committed, path)
            if path.endswith(".safetensors"):
                lines += differences(new, old)
            else:
                with open(new) as a, open(old) as b:
                    if json.load(a) != json.load(b):
                        lines.append(f"{old}: differs")
    print("\n".join(lines))
    sys.exit(1 if lines else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder to write; replaced if it is there")
    parser.add_argument("--check", metavar="DIR", help="folder to compare with")
    parser.add_argument("--scale", type=int, default=1, help="factor on widths, vocabulary and tokens")
    parser.add_argument("--only", nargs="*", choices=sorted(models.MODELS), help="these models alone")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # One thread: the order of torch's sums, and so their last bits, depends on the number of threads.
    torch.set_num_threads(1)
    if args.check:
        check(args.check)
    if not args.out:
        parser.error("give --out or --check")
    shutil.rmtree(args.out, ignore_errors=True)
    write_all(args.out, args.scale, args.only)


if __name__ == "__main__":
    main()
