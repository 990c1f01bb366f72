"""Makes the golden files for tokenizer, chat template and sampler from transformers 5.23.0.

Usage: python text_goldens.py        (needs torch, transformers, tokenizers; writes beside itself)
"""

import json
import pathlib
import random
import tempfile

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.generation import logits_process as lp

HERE = pathlib.Path(__file__).parent


def sampler():
    """Kept sets of top-k, then top-p, then min-p at temperature 1, on logits without ties."""
    rng = random.Random(1)
    kept, penalty = [], []
    for case in range(150):
        n = rng.choice([1, 2, 5, 20, 60])
        logits = [x / 8 for x in rng.sample(range(-80, 80), n)]
        top_k = rng.choice([0, 0, 1, 2, 3, 10])
        top_p = rng.choice([1.0, 1.0, 0.0078125, 0.3, 0.9, 0.95, 0.99])
        min_p = rng.choice([0.0, 0.0, 0.01, 0.05, 0.3, 0.9])
        scores = torch.tensor([logits], dtype=torch.float64)
        if top_k:
            scores = lp.TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = lp.TopPLogitsWarper(top_p)(None, scores)
        if min_p > 0:
            scores = lp.MinPLogitsWarper(min_p)(None, scores)
        ids = torch.isfinite(scores[0]).nonzero().flatten().tolist()
        kept.append(dict(logits=logits, top_k=top_k, top_p=top_p, min_p=min_p, kept=ids))
    for value in (0.5, 1.25, 2.0):
        logits = [x / 8 for x in rng.sample(range(-80, 80), 12)]
        tokens = [3, 0, 7, 3, 11]
        scores = lp.RepetitionPenaltyLogitsProcessor(value)(torch.tensor([tokens]), torch.tensor([logits]))
        penalty.append(dict(logits=logits, tokens=tokens, penalty=value, expected=scores[0].tolist()))
    write("sampler_goldens.json", dict(kept=kept, penalty=penalty))


def write(name, value):
    lines = json.dumps(value, ensure_ascii=False, indent=None, separators=(",", ":")).replace('},{', '},\n{')
    (HERE / name).write_text(lines + "\n")


if __name__ == "__main__":
    sampler()
