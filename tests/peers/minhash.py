"""MinHash against datasketch: the same n-grams, the same signatures, estimates as good.

The n-grams are computed here from their description (crates/data/src/dedup/shingles.rs), in Python's integers, and given to
`datasketch.MinHash` as they are: its signatures must be ours, number for number. Then both, ours and datasketch with its
own hash, are held against the true Jaccard similarity of the sets.
"""

import argparse
import json
import math
import random
import string
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata
from pathlib import Path

from datasketch import MinHash

N = 13
PERMUTATIONS = 128
MASK = (1 << 64) - 1
BASE = 0x9E3779B97F4A7C15
REMOVED = set(string.punctuation)


def fmix64(x):
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ (x >> 33)


def words(text):
    text = "".join(c.lower() for c in unicodedata.normalize("NFC", text) if c not in REMOVED)
    return text.split()


def word_hash(word):
    h = 0xCBF29CE484222325
    for byte in word.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return fmix64(h)


def ngrams(text):
    """The n-grams as tuples of words; one of all words if there are fewer."""
    w = words(text)
    return [tuple(w[i : i + N]) for i in range(len(w) - N + 1)] or ([tuple(w)] if w else [])


def ngram_hash(ngram):
    total = 0
    for word in ngram:
        total = (total * BASE + word_hash(word)) & MASK
    return fmix64(total) >> 32


def corpus(rng):
    """Groups of a text from Python's own library and copies of it with edits, and texts of other scripts."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    rng.shuffle(files)
    groups = []
    for path in files[:60]:
        text = path.read_text(encoding="utf-8", errors="replace")[:6000]
        if len(words(text)) < 60:
            continue
        copies = [text]
        for edits in (1, 3, 8, 20):
            w = text.split()
            for _ in range(edits):
                w[rng.randrange(len(w))] = f"edit{rng.randrange(10**9)}"
            copies.append(" ".join(w))
        groups.append(copies)
    other = ["Ärger und Öl für die Straße. " * 9, "e\u0301te\u0301 café\u00a0noir " * 8, "日本語 テキスト。 " * 20, "ΑΣ ΟΔΟΣ ΚΑΙ " * 9]
    groups.append(other + ["", "... !", "one word", "twelve " * 12, "thirteen " * 13])
    return groups


def signatures(program, texts):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        file.flush()
        lines = subprocess.run([program, "signatures", file.name], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in lines.splitlines()]


def check_signatures(texts, ours):
    for text, mine in zip(texts, ours, strict=True):
        hashes = [ngram_hash(ngram) for ngram in ngrams(text)]
        assert hashes == mine["hashes"], f"other n-grams: {text[:60]!r}"
        if not hashes:
            assert mine["signature"] is None
            continue
        peer = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=lambda h: h)
        peer.update_batch(hashes)
        assert peer.hashvalues.tolist() == mine["signature"], f"other signature: {text[:60]!r}"
    print(f"{len(texts)} texts: n-grams and signatures are datasketch's")


def check_estimates(groups, ours):
    """Errors in units of the binomial standard deviation, of ours and of datasketch with its own hash."""
    z = {"zamba": [], "datasketch": []}
    at = 0
    for copies in groups:
        signed = ours[at : at + len(copies)]
        at += len(copies)
        sets = [set(ngrams(text)) for text in copies]
        peers = []
        for grams in sets:
            peer = MinHash(num_perm=PERMUTATIONS, seed=1)
            peer.update_batch([" ".join(gram).encode() for gram in grams])
            peers.append(peer)
        for j in range(1, len(copies)):
            union = len(sets[0] | sets[j])
            s = len(sets[0] & sets[j]) / union if union else 1.0
            if not 0.02 < s < 0.98:
                continue
            sigma = math.sqrt(s * (1 - s) / PERMUTATIONS)
            equal = sum(a == b for a, b in zip(signed[0]["signature"], signed[j]["signature"]))
            z["zamba"].append((equal / PERMUTATIONS - s) / sigma)
            z["datasketch"].append((peers[0].jaccard(peers[j]) - s) / sigma)
    for name, errors in z.items():
        n = len(errors)
        rms = math.sqrt(sum(e * e for e in errors) / n)
        mean = sum(errors) / n
        worst = max(abs(e) for e in errors)
        print(f"{name:>10}: {n} pairs, error in standard deviations: mean {mean:+.3f}, rms {rms:.3f}, worst {worst:.2f}")
        # Copies of one text share its n-grams, so at worst a group of four pairs counts as one: the standard error of the
        # mean is at most 1 / sqrt(n / 4). Five sigma for one pair is passed once in 1.7 million.
        assert abs(mean) < 4 / math.sqrt(n / 4), f"{name} is biased"
        assert worst < 5, f"{name} is off by {worst} standard deviations"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True, help="the built example `peers` of zamba-data")
    args = parser.parse_args()
    groups = corpus(random.Random(7))
    texts = [text for copies in groups for text in copies]
    ours = signatures(args.program, texts)
    check_signatures(texts, ours)
    check_estimates(groups, ours)


if __name__ == "__main__":
    sys.exit(main())
