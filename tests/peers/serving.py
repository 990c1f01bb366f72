"""A tiny random chat model, a server of it, and a list of what was wrong."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

CONTEXT = 2048

# ChatML. Tools are told to the model, and its calls and their results are told back to it.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or "" }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

TEXT = """The river carves its valley slowly, and water carries sand and stone. Übung, café, 日本語 🙂.
{"name": "value", "list": [1, 2.5, true, false, null]} What is the weather in Paris today? Tools: function call."""


def tokenizer(path):
    """BPE over bytes, so that every text can be written and every byte is a token."""
    made = Tokenizer(tokenizer_models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 2, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet,
                                                             show_progress=False))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    made.save(path)
    return made.get_vocab_size()


def model(binary, folder, template=TEMPLATE, seed=3, width=32, layers=4, ends=True):
    """A model folder as users have it. Without `ends` no token ends a text, so that answers are as long as they may be."""
    os.makedirs(folder, exist_ok=True)
    vocab = tokenizer(os.path.join(folder, "t.json"))
    config = dict(model_type="zamba", vocab_size=vocab, hidden_size=width, intermediate_size=width, num_hidden_layers=layers,
                  num_attention_heads=2, num_key_value_heads=2, n_mamba_heads=2, mamba_d_state=4, mamba_dt_rank=3,
                  max_position_embeddings=CONTEXT, initializer_range=0.2, torch_dtype="float32", bos_token_id=1, eos_token_id=2 if ends else None)
    write(os.path.join(folder, "c.json"), config)
    out = os.path.join(folder, "tiny-chat")
    command = [binary, "init", "--config", os.path.join(folder, "c.json"), "--out", out, "--seed", str(seed), "--tokenizer",
               os.path.join(folder, "t.json")]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    about = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", unk_token="<unk>", model_max_length=CONTEXT)
    if ends:
        about["eos_token"] = "<|im_end|>"
    if template:
        about["chat_template"] = template
    write(os.path.join(out, "tokenizer_config.json"), about)
    return out


def write(path, value):
    with open(path, "w") as f:
        json.dump(value, f)


class Server:
    """`zamba serve`, for as long as a `with` lasts; it must end by itself when it is told to."""

    def __init__(self, binary, folder, *flags, log=None):
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            self.port = any_port.getsockname()[1]
        self.command = [binary, "serve", "-m", folder, "--port", str(self.port), *flags]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log

    def __enter__(self):
        self.errors = open(self.log, "wb") if self.log else subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors)
        for _ in range(1200):
            if self.process.poll() is not None:
                raise SystemExit(f"`{' '.join(self.command)}` ends with {self.process.returncode}")
            if self.status("/health") == 200:
                return self
            time.sleep(0.05)
        self.process.kill()
        raise SystemExit("the server is not healthy after a minute")

    def __exit__(self, kind, error, trace):
        alive = self.process.poll() is None
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "nothing within a minute"
        if kind is None and (not alive or code != 0):
            raise SystemExit(f"the server was {'alive' if alive else 'dead'} at the end; after SIGTERM it gives {code}")

    def status(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def post(self, path, body, raw=False):
        """Status and JSON of an answer, without anybody's client in between."""
        data = body if raw else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return json.load(reply)


class Checks:
    """What was looked at, and what was wrong with it."""

    def __init__(self, name):
        self.name = name
        self.count = 0
        self.failures = []

    def __call__(self, what, fine, seen=None):
        self.count += 1
        if not fine:
            self.failures.append(f"{what}: {seen!r}" if seen is not None else what)
        return fine

    def equal(self, what, seen, wanted):
        return self(what, seen == wanted, (seen, "instead of", wanted))

    def near(self, what, seen, wanted, tolerance):
        return self(what, abs(seen - wanted) <= tolerance, (seen, "instead of", wanted))

    def raises(self, what, kind, action, **wanted):
        """An error of that kind with those fields."""
        try:
            value = action()
        except kind as error:
            for name, value in wanted.items():
                seen = getattr(error, name, None)
                self(f"{what}: {name}", seen == value, (seen, "instead of", value, str(error)))
            return error
        except Exception as error:
            return self(f"{what}: raises {type(error).__name__} instead of {kind.__name__}", False, str(error))
        return self(f"{what}: no {kind.__name__}", False, value)

    def end(self):
        for failure in self.failures[:40]:
            print(f"  {failure[:600]}")
        if self.failures:
            raise SystemExit(f"{self.name}: {len(self.failures)} of {self.count} checks failed")
        print(f"  {self.count} checks, all as they should be")
