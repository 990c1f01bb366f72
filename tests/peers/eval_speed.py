"""Items per second of `zamba eval` and of lm-evaluation-harness with transformers, in turn.

    eval_speed.py items --out DIR [--count N]              items as long as HellaSwag's, below DIR/data
    eval_speed.py tokenizer --out DIR                      a tokenizer for a random model of 32,000 tokens
    eval_speed.py theirs --model DIR --data DIR/data [--limit N] [--batch N] [--dtype bfloat16]
    eval_speed.py turns --zamba PATH --model DIR --data DIR/data [--limit M] [--items N] [--batch N]
    eval_speed.py mmlu --zamba PATH [--config 44m] --out DIR     five shots, with and without prefix reuse

For the 7B: `items` and `tokenizer`, copy both files of the tokenizer into the folder of the model, then

    zamba eval -m MODEL --tasks hellaswag --data DIR/data --limit N
    eval_speed.py theirs --model MODEL --data DIR/data --limit M

Both print seconds and items per second. On a machine whose speed changes from minute to minute `turns` runs them at
once, one of them stopped at any time, second by second, and counts the seconds in which each was not stopped. Both use
the file of weights in place, so that there is memory for two.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
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
    print("begins", flush=True)
    seconds = evaluate(args.limit)
    print(f"lm-eval: {args.limit} items in {seconds:.1f} s, {args.limit / seconds:.4f} per second, batch {args.batch}")


class Turn:
    """A process that runs or is stopped, and the seconds in which it ran."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                        start_new_session=True)
        self.seconds, self.since, self.lines = 0.0, time.monotonic(), []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append((self.ran(), line.rstrip()))

    def ran(self):
        return self.seconds + (time.monotonic() - self.since if self.since else 0.0)

    def ended(self):
        return self.process.poll() is not None

    def stop(self):
        if not self.ended():
            os.killpg(self.process.pid, signal.SIGSTOP)
        self.seconds, self.since = self.ran(), None

    def go(self, seconds):
        """Runs for some seconds, or to its end."""
        if not self.ended():
            self.since = time.monotonic()
            os.killpg(self.process.pid, signal.SIGCONT)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            self.stop()

    def said(self, words):
        return [ran for ran, line in list(self.lines) if line.startswith(words)]


def turns(args):
    """Ours, again and again with loading and all, beside theirs without loading."""
    ours = [args.zamba, "eval", "-m", args.model, "--tasks", "hellaswag", "--data", args.data, "--weights", "map",
            "--limit", str(args.items), "--no-cache", "--json"]
    theirs = Turn([sys.executable, __file__, "theirs", "--model", args.model, "--data", args.data, "--dtype", args.dtype,
                   "--limit", str(args.limit), "--batch", str(args.batch)])
    while not theirs.said("begins"):
        if theirs.ended():
            sys.exit("lm-eval did not begin")
        time.sleep(0.1)
    theirs.stop()
    # What it prints is read by a thread while it runs, so the time of a line is known to a moment.
    rounds, current = [], Turn(ours)
    current.stop()
    while not theirs.said("lm-eval:"):
        current.go(1)
        if current.ended():
            if current.process.returncode != 0:
                sys.exit(f"{' '.join(ours)} failed")
            rounds.append(current.seconds)
            print(f"ours: {args.items} items in {rounds[-1]:.1f} s with loading", flush=True)
            current = Turn(ours)
            current.stop()
        theirs.go(1)
        if theirs.ended() and not theirs.said("lm-eval:"):
            sys.exit("lm-eval did not end well")
    # Theirs has said all it has to say, and would wait at its stop for ever.
    for turn in (current, theirs):
        if not turn.ended():
            os.killpg(turn.process.pid, signal.SIGKILL)
    if not rounds:
        sys.exit("none of our rounds ended: give fewer --items or more --limit")
    seconds = theirs.said("lm-eval:")[0] - theirs.said("begins")[0]
    mine, other = len(rounds) * args.items / sum(rounds), args.limit / seconds
    print(f"lm-eval: {args.limit} items in {seconds:.1f} s, batch {args.batch}")
    print(f"ours {mine:.4f} items/s in {len(rounds)} rounds, lm-eval {other:.4f}: {mine / other:.1f} times")


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
    parser.add_argument("what", choices=["items", "tokenizer", "theirs", "turns", "mmlu"])
    parser.add_argument("--out")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, default=2)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--zamba")
    parser.add_argument("--config", default="44m")
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
