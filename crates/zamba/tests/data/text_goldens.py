"""Makes the golden files for tokenizer, chat template and sampler from transformers 5.23.0.

Usage: python text_goldens.py        (needs torch, transformers, tokenizers; writes beside itself)
"""

import json
import pathlib
import random

import jinja2
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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


PROSE = """The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times.
fn main() { let x = 3; println!("{}", x); }
for i in range(10): print(i)  # a comment
L'été dernier, le garçon naïf mangea une crème brûlée. Straße, größer, übel.
Zamba is a state space model with attention; the state is small and the model is quick.
"""

TEXTS = [
    "", " ", "  ", "a", "Hello", " Hello", "  Hello world", "Hello  world ", "Hello\nworld\n\n", "\n", "\t\ttabs",
    "the quick brown fox", "It was the best of times.", "fn main() { let x = 3; }", "l'été naïf", "größer Straße",
    "日本語", "你好,世界", "emoji 🎉🎊 end", "👨‍👩‍👧", "mixed é日🎉a", "▁literal▁mark", "▁", "a▁b",
    "<s>", "</s>", "<s>Hello", "Hello<s>world", "Hello <s> world", "text</s>", "</s></s> x", "<unk>", "[PAD] x [PAD]",
    "<|im_start|>user\nHi<|im_end|>\n", " <|im_start|> ", "<mask> a <mask>b", "x<mask>", "\u0000\u0001\u007f",
    "e\u0301 combining", "\u200b\ufeff", "1234567890 3.14", "don't we're I'll", "ALL CAPS", "a" * 70, " " * 33 + "x",
]


def save(folder, tokenizer, **files):
    path = HERE / "tokenizers" / folder
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"), pretty=False)
    files.setdefault("config", {"model_type": "zamba"})
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def mistral_like():
    """BPE with byte fallback; the spaces are marks that the normaliser writes, as in Mistral's tokenizer.json."""
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="[PAD]", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["[PAD]", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=special + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(PROSE.splitlines(), trainer)
    tokenizer.pre_tokenizer = None
    # The trainer makes the byte tokens special; in Mistral's file they are ordinary vocabulary.
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [t for t in saved["added_tokens"] if t["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE.splitlines(), trainer)
    return tokenizer


def folders():
    base = mistral_like()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[PAD]"}
    save(
        "mistral",
        base,
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": True},
        special_tokens_map={
            **{k: {"content": v, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
               for k, v in names.items()},
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        generation_config={"eos_token_id": [2, 521]},
    )
    decoder = {
        str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, t in enumerate(["[PAD]", "<s>", "</s>"])
    }
    llama = {"tokenizer_class": "LlamaTokenizer", **names, "add_bos_token": True, "added_tokens_decoder": decoder,
             "clean_up_tokenization_spaces": False}
    save("llama_legacy", base, tokenizer_config={**llama, "legacy": True}, generation_config={"eos_token_id": 2})
    save("llama_first", base, tokenizer_config={**llama, "legacy": False, "pad_token": "[PAD]"})
    save("llama_bare", base, tokenizer_config={"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False})
    level = byte_level()
    save(
        "byte_level",
        level,
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<|endoftext|>",
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "normalized": False,
                          "rstrip": False, "single_word": False},
            "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False,
                           "rstrip": False, "single_word": False, "special": True},
            "extra_special_tokens": ["<|im_start|>"],
            "clean_up_tokenization_spaces": True,
        },
    )


def tokenizer():
    rng = random.Random(2)
    out = {}
    for path in sorted((HERE / "tokenizers").iterdir()):
        tok = AutoTokenizer.from_pretrained(path)
        texts, decodes = [], []
        for text in TEXTS:
            ids = tok(text)["input_ids"]
            plain = tok(text, add_special_tokens=False)["input_ids"]
            texts.append(dict(text=text, ids=ids, plain=plain, decoded=tok.decode(ids),
                              skipped=tok.decode(ids, skip_special_tokens=True)))
        for _ in range(60):
            ids = [rng.randrange(len(tok) + 3) for _ in range(rng.randrange(1, 16))]
            decodes.append(dict(ids=ids, decoded=tok.decode(ids), skipped=tok.decode(ids, skip_special_tokens=True)))
        out[path.name] = dict(size=len(tok), bos=tok.bos_token_id, eos=tok.eos_token_id, texts=texts, decodes=decodes)
    write("tokenizer_goldens.json", out)


CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, not " ~ message.role) }}
    {%- endif %}
{%- endfor %}
"""

LLAMA3 = """{{- bos_token }}
{%- if strftime_now_missing is not defined and tools is not none %}
    {{- raise_exception('tools') }}
{%- endif %}
{#- a comment -#}
{%- for message in messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

FEATURES = """{%- macro tag(name, text='') -%}<{{ name }}>{{ text }}</{{ name }}>{%- endmacro -%}
{% for message in messages %}
  {% if message.role == 'skip' %}{% continue %}{% endif %}
  {% if message.role == 'stop' %}{% break %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ tag(message.role | upper, message.content.split('\n')[0].capitalize()) }}
  {% if message.role == 'assistant' %}
  {% generation %}
{{ message.content.rstrip().replace('a', '4') }}
  {% endgeneration %}
  {% endif %}
{{ message | tojson }}
{{ {'k': [1, 2.5, true, none, 'é<&>"'], 'a': {}, 'b': []} | tojson(indent=2) }}
{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true, separators=[',', ':']) }} {{ 'é🎉' | tojson(ensure_ascii=true) }}
{% for key, value in message.items() %}{{ key }}={{ value | length }};{% endfor +%}
{{ message.content.startswith('x') }} {{ message.get('missing', 'none') }} {{ message.name }} {{ undefined_name }}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ 'yes' if add_generation_prompt else 'no' }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ '%s' | format('x') }} {{ [1, 2, 3][-1] }}
{% if 'user' in messages[0].role %}in{% endif %}{{ "a" "b" }}
"""


def template():
    turns = [("user", "Hello  there\n"), ("assistant", " Hi! banana \n"), ("user", "x")]
    system = [("system", "Be brief.")]
    conversations = [turns[:1], turns, system + turns, turns[1:], [("user", "")], turns[:2] + [("tool", "out")],
                     [("skip", "no")] + turns + [("stop", "now"), ("user", "late")], [("user", "é 日本 🎉 \"quoted\" \\ \x07\t<s>")]]
    tok = AutoTokenizer.from_pretrained(HERE / "tokenizers" / "mistral")
    sources = dict(chatml=CHATML, llama2=LLAMA2, mistral=MISTRAL, llama3=LLAMA3, features=FEATURES)
    cases = []
    for name, source in sources.items():
        for turns in conversations:
            messages = [dict(role=r, content=c) for r, c in turns]
            for prompt in (False, True):
                case = dict(template=name, messages=messages, add_generation_prompt=prompt)
                try:
                    case["expected"] = tok.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=prompt, chat_template=source)
                except jinja2.exceptions.TemplateError as error:
                    case["error"] = str(error)
                cases.append(case)
    write("template_goldens.json", dict(templates=sources, cases=cases))


def write(name, value):
    lines = json.dumps(value, ensure_ascii=False, indent=None, separators=(",", ":")).replace('},{', '},\n{')
    (HERE / name).write_text(lines + "\n")


if __name__ == "__main__":
    sampler()
    folders()
    tokenizer()
    template()
