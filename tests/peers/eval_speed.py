"""Items per second of `zamba eval` and of lm-evaluation-harness with transformers, one after the other.

    eval_speed.py items --out DIR [--count N]              items as long as HellaSwag's, below DIR/data
    eval_speed.py tokenizer --out DIR                      a tokenizer for a random model of 32,000 tokens
    eval_speed.py theirs --model DIR --data DIR/data [--limit N] [--batch N] [--dtype bfloat16]
    eval_speed.py mmlu --zamba PATH [--config 44m] --out DIR     five shots, with and without prefix reuse

For the 7B: `items` and `tokenizer`, copy both files of the tokenizer into the folder of the model, then

    zamba eval -m MODEL --tasks hellaswag --data DIR/data --limit N
    eval_speed.py theirs --model MODEL --data DIR/data --limit M

Both print seconds and items per second.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="zamba-speed-"))

import eval_items


def items(args):
    """Contexts of some 60 tokens and endings of some 25, as in HellaSwag."""
    writer = eval_items.Writer("speed")

    def item(i):
        a = writer.words(21, 31)
        b = writer.words(16, 25)
        endings = [writer.words(18, 27) for _ in range(4)]
        return dict(ind=i, activity_label=writer.words(2, 3), ctx_a=a, ctx_b=b, ctx=a + " " + b, endings=endings,
                    source_id="s", split="val", split_type="indomain", label=str(writer.number(0, 4)))

    task = ("hellaswag", "Rowan/hellaswag", None, None, None, "jsonl")
    print(eval_items.write(task, os.path.join(args.out, "data"), {"validation": [item(i) for i in range(args.count)]}))


def tokenizer(args):
    writer = eval_items.Writer("speed")
    os.makedirs(args.out, exist_ok=True)
    print(eval_items.tokenizer([writer.words(20, 60) for _ in range(400)], args.out), "tokens")


def theirs(args):
    import lm_eval
    from lm_eval.tasks import TaskManager

    import eval as peer

    folder = tempfile.mkdtemp(prefix="zamba-tasks-")
    path = os.path.join(args.data, "hellaswag", "data", "validation-00000-of-00001.jsonl")
    peer.definition(("hellaswag", None, None, None, None, "jsonl"), {"validation": path, "train": path}, folder)
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=args.model, dtype=args.dtype, device="cpu", batch_size=args.batch)

    def evaluate(limit):
        started = time.time()
        lm_eval.simple_evaluate(model=model, tasks=["hellaswag"], limit=limit, bootstrap_iters=0,
                                task_manager=TaskManager(include_path=folder))
        return time.time() - started

    # The first item, untimed, brings the weights into memory.
    evaluate(1)
    seconds = evaluate(args.limit)
    print(f"lm-eval: {args.limit} items in {seconds:.1f} s, {args.limit / seconds:.4f} per second, batch {args.batch}")


def mmlu(args):
    """A random model of a middling size, one subject as long as MMLU's are on average."""
    writer = eval_items.Writer("speed", "mmlu")

    def item(_):
        return dict(question=writer.words(30, 45) + "?", subject="x", choices=[writer.words(4, 9) for _ in range(4)],
                    answer=writer.number(0, 4))

    task = ("mmlu_anatomy", "cais/mmlu", "anatomy", None, None, "parquet")
    data = os.path.join(args.out, "data")
    eval_items.write(task, data, {"dev": [item(i) for i in range(5)], "test": [item(i) for i in range(args.count)]})
    tokens, model = os.path.join(args.out, "tokenizer"), os.path.join(args.out, "model")
    args.out = tokens
    tokenizer(args)
    if not os.path.exists(model):
        subprocess.run([args.zamba, "init", "--config", args.config, "--out", model, "--tokenizer",
                        os.path.join(tokens, "tokenizer.json")], check=True)
    for flags in [["--no-prefix-reuse"], []]:
        command = [args.zamba, "eval", "-m", model, "--tasks", "mmlu_anatomy", "--num-fewshot", "5", "--data", data]
        done = subprocess.run(command + flags + ["--json"], capture_output=True, text=True, check=True)
        score = json.loads(done.stdout)["results"]["mmlu_anatomy"]["acc,none"]
        print(done.stderr.strip().splitlines()[-1], "acc", score)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["items", "tokenizer", "theirs", "mmlu"])
    parser.add_argument("--out")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--zamba")
    parser.add_argument("--config", default="44m")
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
