"""Checkpoints go both ways between zamba and transformers.

    roundtrip.py --zamba PATH/zamba --golden DIR

1. What `zamba init` writes, transformers loads without a word of warning, and both give the same logits.
2. What transformers wrote, in every layout, `zamba convert` writes again with the same bits in every tensor.
3. `zamba generate` and `zamba score` say what transformers says of the same folder.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

import golden
import models

# Difference of two logits as a fraction of their range, in f32.
LOGITS = 1e-4
# The same where zamba computes products of bf16 operands (8 bits of mantissa) and transformers does not: the
# roundings of a few dozen products in a row add up to a few times 2^-9.
LOGITS_BF16 = 5e-3
# The same after a copy with equal bits: `gelu_new` and `gelu_pytorch_tanh` are two names and two programs of one
# function, and zamba writes the second.
LOGITS_COPY = 1e-6
LOGPROB = 1e-4


class Heard(logging.Handler):
    """Keeps every warning of transformers."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


HEARD = Heard()
# Said of every model on a CPU, and about speed only.
EXPECTED = ("is falling back to its reference PyTorch implementation",)


def quiet_load(folder):
    """models.load, which fails on missing or unexpected tensors; any warning is a failure too."""
    HEARD.lines.clear()
    model = models.load(folder)
    said = [line for line in HEARD.lines if not any(words in line for words in EXPECTED)]
    if said:
        fail(f"{folder}: transformers warns: {said}")
    return model


def fail(why):
    raise SystemExit(f"round trip: {why}")


def zamba(binary, *args):
    """Standard output of one command of zamba."""
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        fail(f"`zamba {' '.join(map(str, args))}` ends with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def score(binary, folder, rows, scratch):
    """Log-probabilities and logits that zamba gives to `rows` of token ids."""
    lines, out = os.path.join(scratch, "rows.jsonl"), os.path.join(scratch, "logits.safetensors")
    with open(lines, "w") as f:
        f.writelines(json.dumps({"tokens": row.tolist()}) + "\n" for row in rows)
    said = zamba(binary, "score", "-m", folder, "--input", lines, "--logits", out, "--json")
    logits = load_file(out)
    return [json.loads(line) for line in said.splitlines()], [logits[str(i)] for i in range(len(rows))]


@torch.no_grad()
def compare_scores(binary, folder, tolerance, scratch):
    """Fails unless zamba and transformers agree on random rows."""
    model = quiet_load(folder)
    draw = models.rng_of("round trip")
    rows = golden.draw_tokens(draw, model.config.vocab_size, (2, 32))
    said, logits = score(binary, folder, rows, scratch)
    for row, line, got in zip(rows, said, logits):
        want = golden.forward(model, row[None]).logits[0]
        span = float(want.max() - want.min())
        worst = float((got - want).abs().max()) / span
        if got.dtype != torch.float32 or got.shape != want.shape or not worst <= tolerance:
            fail(f"{folder}: logits {got.dtype}{tuple(got.shape)} differ by {worst:.2e} of their range {span:.3g}")
        if line["tokens"] != row.tolist() or line["logprobs"][0] is not None:
            fail(f"{folder}: score answers {line}")
        logprobs = want.log_softmax(-1)[:-1].gather(1, row[1:, None])[:, 0]
        off = float((torch.tensor(line["logprobs"][1:]) - logprobs).abs().max())
        if not off <= LOGPROB * max(1.0, tolerance / LOGITS * span):
            fail(f"{folder}: log-probabilities differ by {off:.2e}")
    return worst


def tensors_of(folder):
    """All tensors of a folder by name, from one file or many."""
    out = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            with safe_open(os.path.join(folder, file), "pt") as f:
                out.update({key: f.get_tensor(key) for key in f.keys()})
    return out


def same_bits(a, b):
    """Whether two tensors have the same type, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def compare_tensors(copy, original, what):
    """Fails unless two sets of tensors are equal bit for bit."""
    if set(copy) != set(original):
        fail(f"{what}: other tensors: {sorted(set(copy) ^ set(original))}")
    for key, value in original.items():
        if not same_bits(copy[key], value):
            fail(f"{what}: {key} changed")


def init(binary, configs, scratch):
    """`zamba init`, read by transformers."""
    for config in configs:
        for dtype, stored, tolerance in (("f32", torch.float32, LOGITS), ("bf16", torch.bfloat16, LOGITS_BF16)):
            folder = os.path.join(scratch, f"init-{len(os.listdir(scratch))}")
            zamba(binary, "init", "--config", config, "--out", folder, "--dtype", dtype, "--seed", 7)
            kinds = {t.dtype for t in tensors_of(folder).values()}
            if kinds != {stored}:
                fail(f"{config}: init --dtype {dtype} stores {kinds}")
            worst = compare_scores(binary, folder, tolerance, scratch)
            print(f"init {config} {dtype}: no warning, logits within {worst:.1e} of their range", flush=True)


def copies(binary, folders, scratch):
    """transformers -> zamba -> transformers."""
    for folder in folders:
        copy = os.path.join(scratch, f"copy-{len(os.listdir(scratch))}")
        zamba(binary, "convert", "-m", folder, "--out", copy)
        # The old layout comes back under the current names, so it is compared as transformers reads it.
        original = folder if not folder.endswith("layouts/old") else os.path.join(folder, "..", "..", "one_mamba_head")
        compare_tensors(tensors_of(copy), tensors_of(original), folder)
        a, b = quiet_load(original), quiet_load(copy)
        tokens = load_file(os.path.join(folder, "golden.safetensors"))["tokens"]
        with torch.no_grad():
            want, got = (golden.forward(model, tokens).logits for model in (a, b))
        off = float((got - want).abs().max() / (want.max() - want.min()))
        if not off <= LOGITS_COPY:
            fail(f"{folder}: the logits of the copy differ by {off:.1e} of their range")
        print(f"copy {folder}: every tensor has the same bits", flush=True)


def text(binary, folders):
    """Greedy text of the committed golden files, through the command line."""
    for folder in folders:
        want = load_file(os.path.join(folder, "golden.safetensors"))
        prompt = ",".join(map(str, want["greedy.prompt"][0].tolist()))
        args = ("-m", folder, "--tokens", prompt, "-n", golden.GREEDY, "--temp", 0, "--ignore-eos", "--json")
        said = json.loads(zamba(binary, "generate", *args))
        if said["tokens"] != want["greedy.tokens"].tolist():
            fail(f"{folder}: generate gives {said['tokens']}")
        print(f"text {folder}: {golden.GREEDY} equal tokens", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zamba", required=True, help="the program")
    parser.add_argument("--golden", required=True, help="folder of golden files")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(HEARD)
    torch.set_num_threads(1)
    named = [os.path.join(args.golden, name) for name in sorted(models.MODELS)]
    layouts = [os.path.join(args.golden, "layouts", name) for name in ("bf16", "f16", "old", "sharded")]
    with tempfile.TemporaryDirectory() as scratch:
        init(args.zamba, [os.path.join(folder, "config.json") for folder in named] + ["tiny"], scratch)
        copies(args.zamba, named + layouts, scratch)
        for folder in named:
            worst = compare_scores(args.zamba, folder, LOGITS, scratch)
            print(f"score {folder}: logits within {worst:.1e} of their range", flush=True)
    text(args.zamba, named)


if __name__ == "__main__":
    sys.exit(main())
