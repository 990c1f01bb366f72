"""Token shards and blending against Megatron-LM.

1. Shards that zamba writes: read by `megatron.core.datasets.indexed_dataset.IndexedDataset`, and by a reader of 30 lines
   written from the description of the format; both must give the documents that went in.
2. Shards that Megatron's builder writes: read by zamba.
3. Blending: which source serves which sample, against Megatron's `build_blending_indices`.
"""

import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
import torch

warnings.filterwarnings("ignore")
from megatron.core.datasets import helpers_cpp  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder  # noqa: E402
from megatron.core.datasets.utils import normalize  # noqa: E402

DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}


def independent_reader(prefix):
    """Documents of a shard, by the letter of the format."""
    idx = Path(f"{prefix}.idx").read_bytes()
    assert idx[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", idx, 9)
    assert version == 1
    at = 34
    lengths = struct.unpack_from(f"<{sequences}i", idx, at)
    at += 4 * sequences
    offsets = struct.unpack_from(f"<{sequences}q", idx, at)
    at += 8 * sequences
    documents = struct.unpack_from(f"<{boundaries}q", idx, at)
    at += 8 * boundaries
    assert at == len(idx), "bytes are left over"
    assert documents[0] == 0 and documents[-1] == sequences
    raw = Path(f"{prefix}.bin").read_bytes()
    dtype = numpy.dtype(DTYPES[code])
    assert len(raw) == sum(lengths) * dtype.itemsize
    read = lambda s: numpy.frombuffer(raw, dtype, lengths[s], offsets[s]).tolist()
    return [sum((read(s) for s in range(a, b)), []) for a, b in zip(documents, documents[1:])]


def texts(rng, vocabulary):
    lengths = [1, 2, 3, 1000] + [rng.randrange(1, 200) for _ in range(300)]
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]


def check_written(program, folder, rng):
    for vocabulary, dtype in ((32000, numpy.uint16), (65499, numpy.uint16), (65500, numpy.int32), (200000, numpy.int32)):
        documents = texts(rng, vocabulary)
        prefix = f"{folder}/ours-{vocabulary}"
        source = Path(f"{prefix}.json")
        source.write_text("".join(json.dumps(document) + "\n" for document in documents))
        subprocess.run([program, "write", prefix, str(vocabulary), source], check=True)
        assert independent_reader(prefix) == documents
        for mmap in (True, False):
            dataset = IndexedDataset(prefix, mmap=mmap)
            assert len(dataset) == len(documents) and dataset.index.dtype == dtype
            assert [dataset[i].tolist() for i in range(len(dataset))] == documents
            assert dataset.document_indices.tolist() == list(range(len(documents) + 1))
            assert dataset.sequence_lengths.tolist() == [len(document) for document in documents]
            assert dataset.get(3, offset=17, length=5).tolist() == documents[3][17:22]
        print(f"vocabulary {vocabulary}: Megatron and the independent reader read {len(documents)} documents alike")


def check_read(program, folder, rng):
    for vocabulary, dtype in ((32000, numpy.uint16), (100000, numpy.int32)):
        documents = texts(rng, vocabulary)
        prefix = f"{folder}/theirs-{vocabulary}"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for i, document in enumerate(documents):
            # Every third document in two sequences.
            lengths = [len(document)] if i % 3 or len(document) < 2 else [1, len(document) - 1]
            builder.add_document(torch.tensor(document, dtype=torch.int64), lengths)
        builder.finalize(f"{prefix}.idx")
        out = subprocess.run([program, "read", prefix, str(vocabulary)], check=True, capture_output=True, text=True)
        assert [json.loads(line) for line in out.stdout.splitlines()] == documents
        print(f"vocabulary {vocabulary}: zamba reads {len(documents)} documents of Megatron's")


def check_blend(program, rng):
    samples = 200_000
    for k in (1, 2, 3, 7):
        weights = [rng.uniform(0.01, 5) for _ in range(k)]
        index, sample_index = numpy.zeros(samples, numpy.int16), numpy.zeros(samples, numpy.int64)
        helpers_cpp.build_blending_indices(index, sample_index, numpy.array(normalize(weights)), k, samples, False)
        out = subprocess.run([program, "blend", str(samples), *map(repr, weights)], check=True, capture_output=True, text=True)
        ours = numpy.array(json.loads(out.stdout))
        assert (ours[:, 0] == index).all() and (ours[:, 1] == sample_index).all(), f"{weights}"
        print(f"{k} sources: {samples} samples are served as by Megatron")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True, help="the built example `peers` of zamba-data")
    args = parser.parse_args()
    rng = random.Random(11)
    with tempfile.TemporaryDirectory() as folder:
        check_written(args.program, folder, rng)
        check_read(args.program, folder, rng)
    check_blend(args.program, rng)


if __name__ == "__main__":
    sys.exit(main())
