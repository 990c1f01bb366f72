"""lm-evaluation-harness against `zamba serve` says what `zamba eval` says of the same model and files.

    serve_lm_eval.py --zamba PATH/zamba

`--model local-completions` sends prompts as token ids, several at once, and reads log-probabilities of prompts from what
is echoed. It is run with the tokenizer of the model folder, and with that of the server, which it asks for tokens of every
text.

Two things it does otherwise against any server, and they are made equal here:

- `hf`, and so `zamba eval`, makes text of the new tokens alone, and a SentencePiece tokenizer drops the space before their
  first word. A server's text goes on with the prompt, so that the space is there. It is taken away from what is compared;
  what metrics make of the text is compared as it is.
- The server's tokenizer is never asked to put the first token `<s>` before a text, whatever `add_bos_token` says. So that
  run is of a model folder whose tokenizer does not either.
"""

import argparse
import json
import logging
import os
import shutil
import sys

# Before lm_eval: it sets the environment.
import eval as peer

import datasets
import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

import eval_items
import serving

# What is asked, in how many shots, with how long a sequence, and who makes tokens of text. The client keeps one token of
# its length for the answer, and takes the last token of a choice into the prompt, where the model itself needs neither.
SCORED = eval_items.MAX_LENGTH + 2
GENERATED = eval_items.MAX_LENGTH + 1
RUNS = [
    (["piqa", "arc_easy", "winogrande", "lambada_openai"], None, SCORED, "huggingface"),
    (["wikitext"], None, SCORED, "huggingface"),
    (["hellaswag", "boolq"], 2, SCORED, "huggingface"),
    (["gsm8k"], None, GENERATED, "huggingface"),
    (["piqa", "lambada_openai"], None, SCORED, "remote"),
    (["wikitext"], None, SCORED, "remote"),
    (["gsm8k"], None, GENERATED, "remote"),
]


def theirs(server, model, tasks, folder, shots, length, backend):
    arguments = dict(model=os.path.basename(model), base_url=f"{server.url}/v1/completions", tokenizer_backend=backend, num_concurrent=4,
                     tokenized_requests=True, add_bos_token=True, max_length=length, max_retries=1, batch_size=5)
    if backend == "huggingface":
        arguments["tokenizer"] = model
    said = lm_eval.simple_evaluate(model="local-completions", model_args=arguments, tasks=tasks, num_fewshot=shots,
                                   task_manager=TaskManager(include_path=folder), log_samples=True)
    said = json.loads(json.dumps({key: said[key] for key in peer.KEYS if key in said}, default=handle_non_serializable))
    for sample in (sample for samples in said["samples"].values() for sample in samples):
        sample["resps"] = [[without_space(said) for said in one] for one in sample["resps"]]
    return said


def without_space(said):
    """A generated text without the space before its first word. Scores stay as they are."""
    return said.removeprefix(" ") if isinstance(said, str) else said


def without_first_token(model, folder):
    """A copy of a model whose tokenizer puts no token before a text."""
    shutil.copytree(model, folder)
    for name, change in [("tokenizer.json", {"post_processor": None}), ("tokenizer_config.json", {"add_bos_token": False})]:
        with open(os.path.join(folder, name)) as f:
            fields = {**json.load(f), **change}
        serving.write(os.path.join(folder, name), fields)
    return folder


def main():
    sys.stdout.reconfigure(line_buffering=True)
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser()
    parser.add_argument("--zamba", required=True)
    args = parser.parse_args()
    data, folder, model = (os.path.join(peer.SCRATCH, name) for name in ("data", "tasks", "zamba"))
    os.makedirs(folder, exist_ok=True)
    wanted = {name for tasks, *_ in RUNS for name in tasks}
    tasks = [task for task in eval_items.TASKS if task[0] in wanted]
    rows = {task[0]: eval_items.rows_of(task) for task in tasks}
    eval_items.checkpoint([t for r in rows.values() for t in eval_items.texts(r)], model)
    eval_items.say_what_the_model_would(rows["piqa"]["validation"], model)
    for task in tasks:
        peer.definition(task, eval_items.write(task, data, rows[task[0]]), folder)
    plain = without_first_token(model, os.path.join(peer.SCRATCH, "plain"))
    for backend, path in [("huggingface", model), ("remote", plain)]:
        # The client's prompts are up to two tokens longer than the model says its sequences are.
        with serving.Server(args.zamba, path, "--ctx", str(eval_items.MAX_LENGTH + 8)) as server:
            for number, (names, shots, length, _) in enumerate(run for run in RUNS if run[3] == backend):
                print(f"  {', '.join(names)}, shots {'as they are' if shots is None else shots}, tokens by {backend}")
                out = os.path.join(peer.SCRATCH, f"out-{backend}-{number}")
                results, samples = peer.ours(args.zamba, path, names, data, shots, out)
                peer.compare(results, samples, theirs(server, path, names, folder, shots, length, backend))
    if not any(peer.GREEDY):
        peer.FAILURES.append("no choice is what the model would say, so that is_greedy was not tested")
    for failure in peer.FAILURES[:40]:
        print(f"  {failure[:600]}")
    if peer.FAILURES:
        raise SystemExit(f"serve_lm_eval: {len(peer.FAILURES)} differences")
    print("  no difference")


if __name__ == "__main__":
    main()
