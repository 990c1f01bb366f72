"""`zamba eval` and lm-evaluation-harness say the same of the same model and files.

    eval.py --zamba PATH/zamba [--keep DIR]

Compared for every item: prompts and continuations byte for byte, hashes of item, prompt and target, the
log-likelihood of every choice, whether it is what the model would say, generated texts, extracted answers and the
metrics; for every task and group: all metrics and their standard errors.
"""

import argparse
import functools
import glob
import json
import logging
import os
import subprocess
import sys
import tempfile

# Before lm_eval: nothing is looked for on the network, and nothing is left behind.
SCRATCH = tempfile.mkdtemp(prefix="zamba-eval-")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=os.path.join(SCRATCH, "cache"),
                  HF_HOME=os.path.join(SCRATCH, "home"), TOKENIZERS_PARALLELISM="false", LMEVAL_LOG_LEVEL="ERROR",
                  TQDM_DISABLE="1")

import datasets
import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

import eval_items

# Log-likelihood of a choice in f32. That of a whole text is a sum over hundreds of tokens, in f32 there, and is
# compared as a fraction of itself.
LOGLIKELIHOOD = 1e-4
ROLLING = 2e-6
# Metrics that are no counts, as a fraction of themselves: a perplexity moves with its log-likelihoods.
SMOOTH = {"perplexity": 1e-4, "word_perplexity": 1e-4, "byte_perplexity": 1e-4, "bits_per_byte": 1e-5}

# Of what lm-eval says, what is compared.
KEYS = ["results", "samples", "group_subtasks", "higher_is_better", "n-shot", "versions", "n-samples"]

FAILURES = []
# Choices that the model itself would say, by comparison.
GREEDY = []


def check(what, ours, theirs):
    if ours != theirs:
        FAILURES.append(f"{what}: {ours!r} and in lm-eval {theirs!r}")


def check_near(what, ours, theirs, tolerance):
    if not abs(ours - theirs) <= tolerance:
        FAILURES.append(f"{what}: {ours} and in lm-eval {theirs}, more than {tolerance} apart")


def subjects():
    """The subjects of MMLU, from the program's own task file."""
    path = os.path.join(os.path.dirname(__file__), "../../crates/eval/tasks/mmlu.yaml")
    with open(path) as f:
        return [doc["dataset_name"] for doc in yaml.safe_load_all(f) if "dataset_name" in doc]


@functools.cache
def own_tasks():
    """The tasks of lm-eval by name. It reads thousands of files to find them."""
    return TaskManager().task_index


def definition(task, files, folder):
    """A task file for lm-eval: its own, with other data."""
    name, _, _, _, _, form = task
    own = own_tasks()[name].yaml_path
    body = dict(include=str(own), task=name, dataset_path="json" if form == "jsonl" else form, dataset_name=None,
                dataset_kwargs=dict(data_files=files))
    with open(os.path.join(folder, name + ".yaml"), "w") as f:
        yaml.safe_dump(body, f)


def theirs(model, tasks, folder, shots, batch, kept=None):
    """What lm-eval says; taken from the file `kept` if that is there, and else put there."""
    if kept and os.path.exists(kept):
        with open(kept) as f:
            return json.load(f)
    said = lm_eval.simple_evaluate(
        model="hf", model_args=dict(pretrained=model, dtype="float32"), tasks=tasks, num_fewshot=shots,
        batch_size=batch, device="cpu", task_manager=TaskManager(include_path=folder), log_samples=True)
    text = json.dumps({key: said[key] for key in KEYS if key in said}, default=handle_non_serializable)
    if kept:
        with open(kept + ".tmp", "w") as f:
            f.write(text)
        os.rename(kept + ".tmp", kept)
    return json.loads(text)


def ours(binary, model, tasks, data, shots, out):
    command = [binary, "eval", "-m", model, "--tasks", ",".join(tasks), "--data", data, "--out", out,
               "--log-samples", "--json"]
    command += [] if shots is None else ["--num-fewshot", str(shots)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"eval: `{' '.join(command)}` ends with {done.returncode}: {done.stderr.strip()}")
    print("    " + done.stderr.strip().splitlines()[-1])
    results = json.loads(done.stdout)
    samples = {}
    for task in results["configs"]:
        newest = max(glob.glob(os.path.join(glob.escape(out), "*", f"samples_{task}_*.jsonl")))
        with open(newest) as f:
            samples[task] = [json.loads(line) for line in f]
    return results, samples


def compare_sample(where, mine, other):
    arguments = {f"gen_args_{i}": {f"arg_{j}": a for j, a in enumerate(args)} for i, args in enumerate(other["arguments"])}
    check(f"{where} arguments", mine["arguments"], arguments)
    for key in ["doc_id", "doc", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"]:
        check(f"{where} {key}", mine[key], other[key])
    check(f"{where} target", mine["target"], str(other["target"]))
    for key in ["resps", "filtered_resps"]:
        compare_responses(f"{where} {key}", mine[key], as_text(other[key]))
    for metric in other["metrics"]:
        value = json.loads(json.dumps(other[metric]))
        if isinstance(value, list) or metric in SMOOTH:
            first = lambda v: v[0] if isinstance(v, list) else v
            check_near(f"{where} {metric}", first(mine[metric]), first(value), LOGLIKELIHOOD + ROLLING * abs(first(value)))
        else:
            check(f"{where} {metric}", mine[metric], value)


def as_text(value):
    """As lm-eval writes responses: whatever is in a list as text of Python."""
    return [as_text(v) for v in value] if isinstance(value, list) else str(value)


def is_score(value):
    return isinstance(value, list) and len(value) == 2 and value[1] in ("True", "False")


def compare_responses(where, mine, other):
    if is_score(other):
        check_near(where, float(mine[0]), float(other[0]), LOGLIKELIHOOD)
        check(f"{where} is_greedy", mine[1], other[1])
    elif isinstance(other, list):
        check(f"{where} number", len(mine), len(other))
        for i, (m, o) in enumerate(zip(mine, other)):
            compare_responses(f"{where}[{i}]", m, o)
    else:
        try:
            number = float(other)
        except ValueError:
            return check(where, mine, other)
        if "wikitext" in where:
            return check_near(where, float(mine), number, ROLLING * abs(number))
        check(where, mine, other)


def compare(results, samples, reference):
    choices = greedy = 0
    for task, wanted in reference["samples"].items():
        check(f"{task} number of samples", len(samples[task]), len(wanted))
        for mine, other in zip(samples[task], wanted):
            compare_sample(f"{task} item {other['doc_id']} {other['filter']}", mine, other)
            scores = [r for r in mine["filtered_resps"] if is_score(r)]
            choices += len(scores)
            greedy += sum(r[1] == "True" for r in scores)
    for name, wanted in reference["results"].items():
        mine = results["results"][name]
        for key, value in wanted.items():
            if key in ("sample_count",):
                continue
            metric = key.split(",")[0].removesuffix("_stderr")
            if isinstance(value, str) or isinstance(value, int):
                check(f"{name} {key}", mine.get(key), value)
            elif metric in SMOOTH:
                check_near(f"{name} {key}", mine[key], float(value), SMOOTH[metric] * abs(value))
            else:
                # Counts: equal to the last digit but for the order of one addition.
                check_near(f"{name} {key}", mine[key], float(value), 1e-12)
                check(f"{name} {key} as printed", f"{mine[key]:.4f}", f"{value:.4f}")
    for name, members in reference["group_subtasks"].items():
        # Members by tag come in an order of their own there.
        check(f"members of {name}", sorted(results["group_subtasks"].get(name, [])), sorted(members))
    for key in ["higher_is_better", "n-shot", "versions", "n-samples"]:
        for name, value in reference[key].items():
            check(f"{key} of {name}", results[key].get(name), json.loads(json.dumps(value)))
    items = sum(len(s) for s in samples.values())
    GREEDY.append(greedy)
    print(f"    {len(samples)} tasks, {items} items, {choices} choices scored, {greedy} of them greedy")


def settle_answers(task, root, rows, samples):
    """Makes what the model says the right answer to every other question of gsm8k, or all would be wrong."""
    said = {s["doc_id"]: s for s in samples if s["filter"] == "flexible-extract"}
    for i, item in enumerate(rows["test"]):
        answer = said[i]["filtered_resps"][0]
        if i % 2 == 0 and answer != "[invalid]":
            item["answer"] = f"so\n#### {answer}"
    return eval_items.write(task, root, rows)


def main():
    sys.stdout.reconfigure(line_buffering=True)
    datasets.disable_progress_bars()
    # That our files replace its own is what we want.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser()
    parser.add_argument("--zamba", required=True)
    parser.add_argument("--keep", help="use this folder and leave it; what lm-eval said is kept there and used again")
    parser.add_argument("--only", type=int, help="number of the one comparison to make")
    parser.add_argument("--subjects", type=int, default=57, help="subjects of MMLU")
    args = parser.parse_args()
    scratch = args.keep or SCRATCH
    data, folder, model = (os.path.join(scratch, name) for name in ("data", "tasks", "model"))
    os.makedirs(folder, exist_ok=True)
    mmlu = eval_items.mmlu_tasks(subjects()[:args.subjects])
    rows = {task[0]: eval_items.rows_of(task) for task in eval_items.TASKS + mmlu}
    eval_items.checkpoint([t for r in rows.values() for t in eval_items.texts(r)], model)
    eval_items.say_what_the_model_would(rows["piqa"]["validation"], model)
    for task in eval_items.TASKS + mmlu:
        definition(task, eval_items.write(task, data, rows[task[0]]), folder)

    plain = [task[0] for task in eval_items.TASKS]
    scored = [name for name in plain if name != "gsm8k"]
    kept = lambda number: os.path.join(args.keep, f"lm-eval-{number}.json") if args.keep else None
    if args.only in (None, 0):
        first = theirs(model, ["gsm8k"], folder, None, 10, kept("gsm8k"))
        task = next(t for t in eval_items.TASKS if t[0] == "gsm8k")
        files = settle_answers(task, data, rows["gsm8k"], first["samples"]["gsm8k"])
        definition(task, files, folder)
    runs = [
        (["gsm8k"], None, 10),
        (scored[:6], None, 16),
        (scored[6:], None, 16),
        (scored[:6], 2, 16),
        ([name for name in scored[6:] if name not in ("wikitext", "race")], 2, 16),
        (["mmlu"] if args.subjects == 57 else [t[0] for t in mmlu], 5, 16),
    ]
    for number, (tasks, shots, batch) in enumerate(runs):
        if args.only is not None and number != args.only:
            continue
        print(f"  {', '.join(tasks)}, shots {'as they are' if shots is None else shots}")
        results, samples = ours(args.zamba, model, tasks, data, shots, os.path.join(scratch, f"out{number}"))
        compare(results, samples, theirs(model, tasks, folder, shots, batch, kept(number)))
    if args.only in (None, 1) and not any(GREEDY):
        raise SystemExit("eval: no choice is what the model would say, so that is_greedy was not tested")
    for failure in FAILURES[:40]:
        print(f"  {failure}")
    if FAILURES:
        raise SystemExit(f"eval: {len(FAILURES)} differences")
    print("  no difference")


if __name__ == "__main__":
    main()
