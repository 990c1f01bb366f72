"""Items of our own in the published schemas of the benchmarks, with the awkward ones among them, and a tiny
model with a tokenizer to answer them. Nothing here is taken from a benchmark."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import AutoTokenizer, ZambaConfig, ZambaForCausalLM

import models

WORDS = """the a of river stone window light under carries quickly bread engine cold morning paints wall blue
seven people never table reads small letter across bridge naïve Übung café mañana 日本語 試験 🙂 don't it's
x² ½ three 12 3.5 $40 (so) [title] e.g. Dr. water flows heat metal rises because plants green sun energy""".split()
LETTERS = "ABCDE"
# Sequence length of the tiny model, so that some items are too long for it.
MAX_LENGTH = 640


class Writer:
    """Sentences from a generator that depends on nothing but its name."""

    def __init__(self, *name):
        self.rng = models.rng_of("eval", *name)

    def number(self, low, high):
        return int(self.rng.integers(low, high))

    def words(self, low, high):
        return " ".join(WORDS[i] for i in self.rng.integers(0, len(WORDS), self.number(low, high)))

    def sentence(self, low=4, high=14):
        return self.words(low, high).capitalize() + "."

    def choices(self, count):
        """Options of different lengths; sometimes with a common beginning, or one the beginning of another."""
        kind = self.number(0, 5)
        start = self.words(2, 6)
        if kind == 0:
            return [f"{start} {self.words(1, 4)}" for _ in range(count)]
        if kind == 1:
            return [" ".join([start] + ["again"] * i) for i in range(count)]
        if kind == 2:
            return [self.words(1, 2) for _ in range(count)]
        return [self.words(1, 9) for _ in range(count)]


def piqa(w, i):
    goal = {3: "", 5: "  two  spaces \n", 9: "ends in space "}.get(i, w.words(3, 12))
    if i == 11:
        goal = w.words(900, 901)
    one, two = w.choices(2)
    return dict(goal=goal, sol1=one, sol2=two, label=w.number(0, 2))


def labelled(w, i, key):
    letters = [str(n) for n in range(1, 5)] if i % 7 == 3 else list(LETTERS[:4])
    if i % 9 == 5:
        letters = letters[:3]
    choices = dict(text=w.choices(len(letters)), label=letters)
    answer = letters[w.number(0, len(letters))]
    question = w.sentence()
    if i == 13:
        question = w.words(900, 901)
    return {"id": f"Q_{i}", key: question, "choices": choices, "answerKey": answer}


def arc(w, i):
    return labelled(w, i, "question")


def openbookqa(w, i):
    item = labelled(w, i, "question_stem")
    item["question_stem"] = {0: "Why", 2: "", 4: "   ", 6: "7"}.get(i, item["question_stem"][:-1])
    if i % 5 == 0:
        item["answerKey"] = " " + item["answerKey"]
    return item


def boolq(w, i):
    return dict(question=w.words(4, 9), passage=w.sentence(20, 60), idx=i, label=w.number(0, 2))


def winogrande(w, i):
    one, two = w.choices(2)
    end = {2: "_.", 4: "_ a", 6: "_  twice  spaced."}.get(i, f"_ {w.words(2, 7)}.")
    start = "" if i == 8 else w.words(3, 9) + " "
    return dict(sentence=start + end + ("" if i % 6 else " and _"), option1=one, option2=two,
                answer=str(w.number(1, 3)))


def hellaswag(w, i):
    awkward = {1: " [title] ", 3: " [step] ", 5: "  double  spaces   here ", 7: "[a\nb] ", 9: " ßtraße ", 11: " éTÉ "}
    a, b = w.sentence(), awkward.get(i, "") + w.words(3, 8).upper()
    if i == 13:
        b = ""
    if i == 15:
        a = w.words(900, 901)
    endings = [e + awkward.get(i, "") for e in w.choices(4)]
    return dict(ind=i, activity_label=w.words(1, 3), ctx_a=a, ctx_b=b, ctx=a + " " + b, endings=endings,
                source_id=f"s~{i}", split="val", split_type="indomain", label=str(w.number(0, 4)))


def mmlu(w, i):
    question = w.words(6, 16) + "?"
    if i % 8 == 1:
        question = f" \n{question}  "
    return dict(question=question, subject="x", choices=[w.words(1, 5) for _ in range(4)], answer=w.number(0, 4))


def race(w, i):
    def problem(n):
        blank = n % 2 == 1
        question = w.words(3, 8) + ("  _  ." if blank else "?")
        return dict(question=question, answer=LETTERS[w.number(0, 4)], options=w.choices(4))

    problems = [problem(n) for n in range(1 + w.number(0, 4))]
    problems[-1]["options"][0] = "it's \"quoted\"\n\tand \\ é"
    return dict(example_id=f"high{i}.txt", article=w.sentence(15, 50), problems=repr(problems))


def sciq(w, i):
    one, two, three, four = w.choices(4)
    support = {0: "", 2: "\n  indented", 4: "\u00a0\u3000wide"}.get(i, w.sentence(10, 30))
    return dict(question=w.words(4, 9) + "?", distractor3=three, distractor1=one, distractor2=two,
                correct_answer=four, support=support)


def lambada(w, i):
    text = {0: "alone", 2: "two  spaces", 4: "a line\nbreak here", 6: w.words(900, 901)}.get(i, w.words(8, 30))
    return dict(text=text)


def gsm8k(w, i):
    n = w.number(2, 2000)
    return dict(question=w.sentence(5, 12), answer=f"{w.sentence(3, 8)} <<{n}-1={n - 1}>>\n#### {n:,}")


def wikitext(w, i):
    page = " = Title = \n " + " , ".join(w.words(3, 30) for _ in range(1 + 12 * (i % 4 == 1)))
    return dict(page=page + " ( in brackets ) 1 @,@ 000 @-@ year \" said \" it 's N .\n")


SUBJECTS = {}

# Task, data set, configuration, maker, items per split, format.
TASKS = [
    ("piqa", "baber/piqa", None, piqa, dict(train=30, validation=42), "jsonl"),
    ("arc_easy", "allenai/ai2_arc", "ARC-Easy", arc, dict(train=30, validation=5, test=42), "parquet"),
    ("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", arc, dict(train=30, validation=5, test=42), "parquet"),
    ("boolq", "aps/super_glue", "boolq", boolq, dict(train=30, validation=42), "parquet"),
    ("winogrande", "allenai/winogrande", "winogrande_xl", winogrande, dict(train=30, validation=42), "jsonl"),
    ("hellaswag", "Rowan/hellaswag", None, hellaswag, dict(train=30, validation=42), "parquet"),
    ("openbookqa", "allenai/openbookqa", "main", openbookqa, dict(train=30, validation=5, test=42), "jsonl"),
    ("race", "EleutherAI/race", "high", race, dict(test=42), "parquet"),
    ("sciq", "allenai/sciq", None, sciq, dict(train=30, validation=5, test=42), "parquet"),
    ("lambada_openai", "EleutherAI/lambada_openai", "default", lambada, dict(test=42), "jsonl"),
    ("gsm8k", "openai/gsm8k", "main", gsm8k, dict(train=30, test=40), "parquet"),
    ("wikitext", "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", wikitext,
     dict(train=2, validation=2, test=40), "parquet"),
]


def mmlu_tasks(subjects, items=40):
    """The subjects of MMLU in the form of TASKS."""
    return [(f"mmlu_{s}", "cais/mmlu", s, mmlu, dict(dev=6, test=items), "parquet") for s in subjects]


def rows_of(task):
    """The items of every split of a task."""
    name, _, _, make, splits, _ = task
    out = {}
    for split, count in splits.items():
        writer = Writer(name, split)
        out[split] = [make(writer, i) for i in range(count)]
    if "train" in out and name != "wikitext":
        # The first item to be evaluated stands among the shots too, twice.
        other = next(split for split in out if split != "train")
        out["train"][3] = out["train"][7] = out[other][0]
    return out


def write(task, root, rows):
    """Writes the splits below `root` as a copy of the hub has them; returns the files by split."""
    _, dataset, config, _, _, form = task
    folder = os.path.join(root, dataset.split("/")[1], config or "data")
    os.makedirs(folder, exist_ok=True)
    files = {}
    for split, items in rows.items():
        files[split] = path = os.path.join(folder, f"{split}-00000-of-00001.{form}")
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(items), path)
        else:
            with open(path, "w") as f:
                f.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    return files


def texts(rows):
    """All text of items, for the tokenizer."""
    for items in rows.values():
        for item in items:
            yield from (value for value in item.values() if isinstance(value, str))


def tokenizer(corpus, folder):
    """A tokenizer of the kind of Zamba's: BPE with bytes to fall back on, `<s>` in front."""
    made = Tokenizer(tokenizer_models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    # Merges do not reach from word to word, as in vocabularies that sentencepiece has made.
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, max_token_length=12)
    made.train_from_iterator(corpus, trainer)
    made = json.loads(made.to_str())
    # Bytes are no special tokens, or a text that spells one out would be split.
    made["pre_tokenizer"] = None
    made["added_tokens"] = [t for t in made["added_tokens"] if not t["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(made))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    made.save(os.path.join(folder, "tokenizer.json"))
    config = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                  legacy=False, model_max_length=MAX_LENGTH)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(config, f)
    return made.get_vocab_size()


def checkpoint(corpus, folder):
    """A random model with its tokenizer."""
    os.makedirs(folder, exist_ok=True)
    vocab = tokenizer(corpus, folder)
    fields = {**models.COMMON, "vocab_size": vocab, "max_position_embeddings": MAX_LENGTH, "hidden_size": 32,
              "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = ZambaConfig(**fields, use_associative_scan=False)
    config._attn_implementation = "eager"
    model = ZambaForCausalLM(config).float().eval()
    models.share(model)
    models.randomise(model, "eval", 0)
    with torch.no_grad():
        model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)


@torch.no_grad()
def say_what_the_model_would(items, folder):
    """Makes the first choice of items of piqa the word that the model would say next, where it would say one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = models.load(folder)
    for item in items:
        ids = tokenizer(f"Question: {item['goal']}\nAnswer:", return_tensors="pt").input_ids[:, -MAX_LENGTH:]
        piece = tokenizer.convert_ids_to_tokens(int(model(ids).logits[0, -1].argmax()))
        if piece.startswith("\u2581") and len(piece) > 1:
            item["sol1"] = piece[1:]
