"""The official client of OpenAI over everything that `zamba serve` takes over from there, streamed and not.

    serve_openai.py --zamba PATH/zamba
"""

import argparse
import json
import math
import os
import sys
import tempfile
import typing

import openai
import pydantic

import serving

CHECKS = serving.Checks("serve_openai")
KEY = "a-key-of-this-test"


class Weather(pydantic.BaseModel):
    city: typing.Literal["Paris", "Oslo", "Rome"]
    degrees: typing.Literal[1, 2, 3]
    rain: bool


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
                   "required": ["city"], "additionalProperties": False}}}
OTHER = {"type": "function", "function": {
    "name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "integer", "enum": [1, 2]}},
                                       "required": ["zone"], "additionalProperties": False}}}
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the weather in Paris?"}]


def models(client, server):
    listed = client.models.list().data
    CHECKS("one model", len(listed) == 1 and listed[0].object == "model", listed)
    name = listed[0].id
    CHECKS.equal("the model by name", client.models.retrieve(name).id, name)
    CHECKS.raises("an unknown model", openai.NotFoundError, lambda: client.models.retrieve("no-such-model"), status_code=404)
    CHECKS.raises("a completion of an unknown model", openai.NotFoundError,
                  lambda: client.completions.create(model="no-such-model", prompt="a"), status_code=404, param="model",
                  code="model_not_found")
    return name


def collect(stream):
    """The choices of a streamed completion, put together, and its usage."""
    texts, ends, logprobs, usage, ids = {}, {}, {}, None, set()
    for chunk in stream:
        ids.add(chunk.id)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
            if choice.logprobs:
                logprobs.setdefault(choice.index, []).extend(
                    zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.text_offset))
    CHECKS("all chunks have one id", len(ids) == 1, ids)
    return texts, ends, logprobs, usage


def completions(client, name, server):
    create = lambda **more: client.completions.create(model=name, **more)
    whole = create(prompt="The river carves", max_tokens=24, seed=7, temperature=0.9)
    CHECKS("a text", whole.object == "text_completion" and whole.choices[0].finish_reason in ("stop", "length"), whole)
    CHECKS("usage adds up", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
    again = create(prompt="The river carves", max_tokens=24, seed=7, temperature=0.9)
    CHECKS.equal("the same seed", again.choices[0].text, whole.choices[0].text)
    others = {create(prompt="The river carves", max_tokens=24, seed=s, temperature=0.9).choices[0].text for s in range(6)}
    CHECKS("other seeds", len(others) > 1, others)
    unseeded = {create(prompt="The river carves", max_tokens=24, temperature=1.5).choices[0].text for _ in range(6)}
    CHECKS("without seed every draw is another", len(unseeded) > 1, unseeded)
    CHECKS.equal("16 tokens if nothing is said", create(prompt="The", extra_body={"ignore_eos": True}).usage.completion_tokens, 16)
    texts, ends, _, usage = collect(create(prompt="The river carves", max_tokens=24, seed=7, temperature=0.9, stream=True,
                                           stream_options={"include_usage": True}))
    CHECKS.equal("streamed text", texts[0], whole.choices[0].text)
    CHECKS.equal("streamed end", ends[0], whole.choices[0].finish_reason)
    CHECKS.equal("streamed usage", (usage.prompt_tokens, usage.completion_tokens),
                 (whole.usage.prompt_tokens, whole.usage.completion_tokens))
    _, _, _, usage = collect(create(prompt="The", max_tokens=2, stream=True))
    CHECKS("usage only if asked for", usage is None, usage)
    prompts(create, server)
    several(create)
    scores(create)
    stops(create)
    options(create)


def prompts(create, server):
    ids = server.tokens("The river carves")
    text = create(prompt="The river carves", max_tokens=12, temperature=0)
    tokens = create(prompt=ids, max_tokens=12, temperature=0)
    CHECKS.equal("token ids are the text they spell", tokens.choices[0].text, text.choices[0].text)
    CHECKS.equal("tokens are counted", tokens.usage.prompt_tokens, len(ids))
    list_of = ["The river carves", "water and stone", "🙂"]
    alone = [create(prompt=p, max_tokens=12, temperature=0).choices[0].text for p in list_of]
    batch = create(prompt=list_of, max_tokens=12, temperature=0)
    CHECKS.equal("a batch of texts", [c.text for c in sorted(batch.choices, key=lambda c: c.index)], alone)
    batch = create(prompt=[server.tokens(p) for p in list_of], max_tokens=12, temperature=0)
    CHECKS.equal("a batch of token lists", [c.text for c in sorted(batch.choices, key=lambda c: c.index)], alone)
    texts, _, _, _ = collect(create(prompt=list_of, max_tokens=12, temperature=0, stream=True))
    CHECKS.equal("a batch in a stream", [texts[i] for i in range(3)], alone)


def several(create):
    three = create(prompt="water", max_tokens=12, n=3, seed=5, temperature=1.2)
    CHECKS.equal("n choices", [c.index for c in three.choices], [0, 1, 2])
    CHECKS("they differ", len({c.text for c in three.choices}) > 1, [c.text for c in three.choices])
    again = create(prompt="water", max_tokens=12, n=3, seed=5, temperature=1.2)
    CHECKS.equal("n choices of the same seed", [c.text for c in again.choices], [c.text for c in three.choices])
    texts, _, _, _ = collect(create(prompt="water", max_tokens=12, n=3, seed=5, temperature=1.2, stream=True))
    CHECKS.equal("n choices in a stream", [texts[i] for i in range(3)], [c.text for c in three.choices])
    six = create(prompt=["water", "stone"], max_tokens=4, n=3)
    CHECKS.equal("n choices of each prompt", [c.index for c in six.choices], list(range(6)))
    CHECKS.equal("best_of n", len(create(prompt="a", max_tokens=1, n=2, best_of=2).choices), 2)


def scores(create):
    plain = create(prompt="The river carves", max_tokens=8, temperature=0, logprobs=3, extra_body={"ignore_eos": True})
    lp = plain.choices[0].logprobs
    CHECKS.equal("a score per token", (len(lp.tokens), len(lp.token_logprobs), len(lp.top_logprobs)), (8, 8, 8))
    CHECKS("all are log-probabilities", all(x <= 0 for x in lp.token_logprobs), lp.token_logprobs)
    for own, top in zip(lp.token_logprobs, lp.top_logprobs):
        CHECKS("greedy takes the most likely", math.isclose(own, max(top.values()), abs_tol=1e-6), (own, top))
        CHECKS("alternatives are no more than all", sum(map(math.exp, top.values())) <= 1 + 1e-4, top)
    _, _, streamed, _ = collect(create(prompt="The river carves", max_tokens=8, temperature=0, logprobs=3, stream=True,
                                       extra_body={"ignore_eos": True}))
    CHECKS.equal("scores in a stream", streamed[0], list(zip(lp.tokens, lp.token_logprobs, lp.text_offset)))
    echo = create(prompt="The river carves", max_tokens=8, temperature=0, logprobs=3, echo=True, extra_body={"ignore_eos": True})
    both = echo.choices[0].logprobs
    CHECKS.equal("echo begins with the prompt", echo.choices[0].text, "The river carves" + plain.choices[0].text)
    CHECKS("nothing is known of the first token", both.token_logprobs[0] is None and both.top_logprobs[0] is None, both)
    CHECKS.equal("scores of the prompt and of what follows", len(both.tokens), plain.usage.prompt_tokens + 8)
    CHECKS.equal("what follows scores as without echo", both.token_logprobs[-8:], lp.token_logprobs)
    only = create(prompt="The river carves", max_tokens=0, logprobs=1, echo=True)
    CHECKS.equal("the prompt alone", (only.choices[0].text, only.usage.completion_tokens), ("The river carves", 0))
    CHECKS.equal("it scores the same", only.choices[0].logprobs.token_logprobs, both.token_logprobs[:plain.usage.prompt_tokens])
    for i, (token, at) in enumerate(zip(both.tokens[1:-8], both.text_offset[1:-8])):
        CHECKS.equal(f"offset of token {i + 1}", echo.choices[0].text[at:at + len(token)], token)


def stops(create):
    base = create(prompt="The river", max_tokens=60, seed=1, temperature=1, extra_body={"ignore_eos": True}).choices[0].text
    word = base[10:13]
    cut = create(prompt="The river", max_tokens=60, seed=1, temperature=1, stop=[word, "no such thing"], extra_body={"ignore_eos": True})
    CHECKS.equal("a stop string", (cut.choices[0].text, cut.choices[0].finish_reason), (base[:base.index(word)], "stop"))
    texts, ends, _, _ = collect(create(prompt="The river", max_tokens=60, seed=1, temperature=1, stop=word, stream=True,
                                       extra_body={"ignore_eos": True}))
    CHECKS.equal("a stop string in a stream", (texts[0], ends[0]), (base[:base.index(word)], "stop"))


def options(create):
    forced = create(prompt="a", max_tokens=3, temperature=0, logit_bias={"100": 100}, extra_body={"return_token_ids": True})
    CHECKS.equal("a bias that decides", forced.choices[0].model_extra["token_ids"], [100] * 3)
    free = create(prompt="a", max_tokens=1, temperature=0, extra_body={"return_token_ids": True}).choices[0].model_extra["token_ids"]
    banned = create(prompt="a", max_tokens=1, temperature=0, logit_bias={str(free[0]): -100}, extra_body={"return_token_ids": True})
    CHECKS("a bias that bans", banned.choices[0].model_extra["token_ids"] != free, free)
    for more in [dict(top_p=0.5), dict(frequency_penalty=1.0), dict(presence_penalty=-1.0),
                 dict(extra_body={"top_k": 3}), dict(extra_body={"min_p": 0.2}), dict(extra_body={"repetition_penalty": 1.3})]:
        one, two = (create(prompt="water", max_tokens=12, seed=3, **more).choices[0].text for _ in range(2))
        CHECKS.equal(f"{more} reproduces", one, two)
    narrow = create(prompt="water", max_tokens=12, seed=3, temperature=1.5, extra_body={"top_k": 1}).choices[0].text
    CHECKS.equal("top_k 1 is greedy", narrow, create(prompt="water", max_tokens=12, temperature=0).choices[0].text)
    refused = [dict(suffix="end"), dict(n=0), dict(n=10_000), dict(max_tokens=-1), dict(temperature=-1), dict(temperature=9),
               dict(top_p=2), dict(logprobs=1000), dict(logit_bias={"x": 1}), dict(logit_bias={"999999": 1}), dict(best_of=3),
               dict(stop=["x"] * 1000), dict(frequency_penalty=9)]
    for more in refused:
        field = next(iter(more))
        error = CHECKS.raises(f"{field}={str(more[field])[:20]}", openai.BadRequestError, lambda: create(prompt="a", **more),
                              status_code=400, type="invalid_request_error")
        param = getattr(error, "param", None) or ""
        CHECKS(f"{field} is named", param.split(".")[0].split("[")[0] == field, param)
    error = CHECKS.raises("an unknown field", openai.BadRequestError, lambda: create(prompt="a", extra_body={"no_such": 1}))
    CHECKS("it is named", "no_such" in str(error), str(error))
    CHECKS.raises("an empty prompt of tokens", openai.BadRequestError, lambda: create(prompt=[]), status_code=400, param="prompt")
    CHECKS.raises("a token outside the vocabulary", openai.BadRequestError, lambda: create(prompt=[99999]), status_code=400)
    CHECKS.raises("too long a prompt", openai.BadRequestError, lambda: create(prompt=[5] * (serving.CONTEXT + 1)),
                  status_code=400, code="context_length_exceeded")
    CHECKS.raises("stream_options without stream", openai.BadRequestError,
                  lambda: create(prompt="a", stream_options={"include_usage": True}), param="stream_options")


def gather(stream):
    """The messages of a streamed conversation, put together."""
    out, usage = {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            to = out.setdefault(choice.index, dict(text="", role=None, end=None, logprobs=[], calls={}))
            to["text"] += choice.delta.content or ""
            to["role"] = choice.delta.role or to["role"]
            to["end"] = choice.finish_reason or to["end"]
            if choice.logprobs:
                to["logprobs"] += [(t.token, t.logprob) for t in choice.logprobs.content or []]
            for call in choice.delta.tool_calls or []:
                one = to["calls"].setdefault(call.index, dict(id=None, name="", arguments=""))
                one["id"] = call.id or one["id"]
                one["name"] += call.function.name or ""
                one["arguments"] += call.function.arguments or ""
    return out, usage


def spells(token):
    """Whether the bytes of a token are its text; part of a character has none."""
    try:
        return bytes(token.bytes).decode() == token.token
    except UnicodeDecodeError:
        return token.token.startswith("bytes:")


def chat(client, name, server):
    create = lambda **more: client.chat.completions.create(model=name, **{"messages": ASK, **more})
    whole = create(max_completion_tokens=20, seed=7, temperature=0.8, logprobs=True, top_logprobs=4)
    choice = whole.choices[0]
    CHECKS("a message", whole.object == "chat.completion" and choice.message.role == "assistant", whole)
    CHECKS.equal("scores per token", len(choice.logprobs.content), whole.usage.completion_tokens)
    for token in choice.logprobs.content:
        CHECKS("bytes are those of the token", spells(token), token)
        CHECKS.equal("alternatives", len(token.top_logprobs), 4)
        best = [t.logprob for t in token.top_logprobs]
        CHECKS("the highest first", best == sorted(best, reverse=True) and token.logprob <= best[0] + 1e-6, token)
    streamed, usage = gather(create(max_tokens=20, seed=7, temperature=0.8, logprobs=True, top_logprobs=4, stream=True,
                                    stream_options={"include_usage": True}))
    CHECKS.equal("streamed text, role and end", (streamed[0]["text"], streamed[0]["role"], streamed[0]["end"]),
                 (choice.message.content, "assistant", choice.finish_reason))
    CHECKS.equal("streamed scores", streamed[0]["logprobs"], [(t.token, t.logprob) for t in choice.logprobs.content])
    CHECKS.equal("streamed usage", usage.completion_tokens, whole.usage.completion_tokens)
    CHECKS("the second time the prompt is in the cache", usage.prompt_tokens_details.cached_tokens > 0, usage)
    three = create(max_tokens=8, n=3, seed=1, temperature=1.3)
    CHECKS.equal("n answers", [c.index for c in three.choices], [0, 1, 2])
    streamed, _ = gather(create(max_tokens=8, n=3, seed=1, temperature=1.3, stream=True))
    CHECKS.equal("n answers in a stream", [streamed[i]["text"] for i in range(3)], [c.message.content for c in three.choices])
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " water?"}]}]
    CHECKS("content in parts", create(messages=parts, max_tokens=2, temperature=0).choices[0].message.content is not None)
    told = server.rendered(ASK)
    CHECKS.equal("the prompt is what the template gives", create(max_tokens=1).usage.prompt_tokens, told)
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]
    CHECKS.raises("a picture", openai.BadRequestError, lambda: create(messages=picture), status_code=400)
    CHECKS.raises("no messages", openai.BadRequestError, lambda: create(messages=[]), status_code=400, param="messages")
    CHECKS.raises("top_logprobs without logprobs", openai.BadRequestError, lambda: create(top_logprobs=2), param="top_logprobs")
    CHECKS.raises("audio", openai.BadRequestError, lambda: create(modalities=["audio"], audio={"voice": "a", "format": "wav"}))


def formats(client, name):
    create = lambda **more: client.chat.completions.create(model=name, **{"messages": ASK, "temperature": 1, **more})
    ended = 0
    for seed in range(8):
        made = create(response_format={"type": "json_object"}, max_tokens=300, seed=seed).choices[0]
        if made.finish_reason == "stop":
            ended += 1
            CHECKS("json_object is an object", isinstance(json.loads(made.message.content), dict), made.message.content)
        else:
            CHECKS("it begins as one", made.message.content.lstrip().startswith("{"), made.message.content)
    CHECKS("some objects come to an end", ended > 0)
    schema = {"name": "weather", "strict": True, "schema": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}, "ok": {"type": "boolean"},
                                         "list": {"type": "array", "items": {"enum": [1, 2, 3]}, "maxItems": 3}},
        "required": ["city", "ok", "list"], "additionalProperties": False}}
    seen = set()
    for seed in range(6):
        made = create(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=200, seed=seed).choices[0]
        CHECKS.equal("a schema is complete", made.finish_reason, "stop")
        value = json.loads(made.message.content)
        CHECKS("and followed", set(value) == {"city", "ok", "list"} and value["city"] in ("Paris", "Oslo")
               and isinstance(value["ok"], bool) and len(value["list"]) <= 3, value)
        seen.add(made.message.content)
    CHECKS("different seeds fill it differently", len(seen) > 1, seen)
    whole = create(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=200, seed=0).choices[0].message.content
    streamed, _ = gather(create(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=200, seed=0, stream=True))
    CHECKS.equal("a schema in a stream", streamed[0]["text"], whole)
    parsed = client.chat.completions.parse(model=name, messages=ASK, response_format=Weather, max_tokens=200, seed=2)
    CHECKS("parse gives the class", isinstance(parsed.choices[0].message.parsed, Weather), parsed)
    with client.chat.completions.stream(model=name, messages=ASK, response_format=Weather, max_tokens=200, seed=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    CHECKS.equal("parse of a stream", final.choices[0].message.parsed, parsed.choices[0].message.parsed)
    CHECKS("the stream has contents and an end", {"content.delta", "content.done"} <= kinds, kinds)
    for bad in [{"type": "nonsense"}, {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}]:
        wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
        CHECKS.raises(f"the schema {bad}", openai.BadRequestError, lambda: create(response_format=wrong), status_code=400)
    plain = create(response_format={"type": "text"}, max_tokens=4, seed=1).choices[0].message.content
    CHECKS.equal("the format text is none", plain, create(max_tokens=4, seed=1).choices[0].message.content)


def tools(client, name):
    create = lambda **more: client.chat.completions.create(
        model=name, **{"messages": ASK, "temperature": 1, "max_tokens": 300, "tools": [TOOL, OTHER], **more})
    def fine(call):
        try:
            arguments = json.loads(call.function.arguments)
        except json.JSONDecodeError:
            return False
        if call.function.name == "get_weather":
            return set(arguments) == {"city"} and arguments["city"] in ("Paris", "Oslo")
        return call.function.name == "get_time" and set(arguments) == {"zone"} and arguments["zone"] in (1, 2)
    names = set()
    for seed in range(12):
        # A random model may go on with call after call; with one alone it comes to an end.
        made = create(tool_choice="required", seed=seed, parallel_tool_calls=seed % 2 == 0).choices[0]
        if made.finish_reason == "length":
            # A random model may write blanks between the words of JSON until it has no tokens left.
            continue
        CHECKS.equal("required: it ends with calls", made.finish_reason, "tool_calls")
        CHECKS("required: calls that fit their schemas", made.message.tool_calls and all(map(fine, made.message.tool_calls)), made)
        names |= {call.function.name for call in made.message.tool_calls or []}
    CHECKS("required: some seed comes to its end", bool(names))
    made = create(tool_choice={"type": "function", "function": {"name": "get_weather"}}, seed=1).choices[0]
    calls = made.message.tool_calls or []
    CHECKS("a named tool", len(calls) == 1 and calls[0].function.name == "get_weather" and fine(calls[0]), made)
    CHECKS("a call has an id", bool(calls and calls[0].id), calls)
    streamed, _ = gather(create(tool_choice={"type": "function", "function": {"name": "get_weather"}}, seed=1, stream=True))
    one = streamed[0]["calls"].get(0, {})
    CHECKS.equal("a named tool in a stream", (one.get("name"), one.get("arguments")),
                 ("get_weather", calls[0].function.arguments if calls else None))
    # The client takes a named choice to end with "stop" or "tool_calls"; ours says what OpenAI's says of required ones.
    none = create(tool_choice="none", seed=1, max_tokens=30).choices[0]
    CHECKS("none: no calls", not none.message.tool_calls and none.finish_reason != "tool_calls", none)
    for seed in range(4):
        auto = create(tool_choice="auto", seed=seed, max_tokens=60).choices[0]
        CHECKS("auto: what calls there are fit", all(map(fine, auto.message.tool_calls or [])), auto)
    back = ASK + [{"role": "assistant", "content": None, "tool_calls": [call.model_dump() for call in calls]},
                  {"role": "tool", "tool_call_id": calls[0].id if calls else "x", "content": "rain"}]
    CHECKS("results go back", create(messages=back, tool_choice="none", max_tokens=4).choices[0].message.content is not None)
    CHECKS.raises("an unknown tool", openai.BadRequestError,
                  lambda: create(tool_choice={"type": "function", "function": {"name": "nothing"}}), status_code=400)
    CHECKS.raises("a choice without tools", openai.BadRequestError,
                  lambda: client.chat.completions.create(model=name, messages=ASK, tool_choice="required"), status_code=400)
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    CHECKS.raises("a tool with a wrong schema", openai.BadRequestError, lambda: create(tools=[bad], tool_choice="required"), status_code=400)


def embeddings(client, name):
    one = client.embeddings.create(model=name, input="water and stone", encoding_format="float").data[0].embedding
    CHECKS.equal("a number for each place of the width", len(one), 32)
    CHECKS("they are numbers", all(map(math.isfinite, one)) and any(one), one)
    coded = client.embeddings.create(model=name, input="water and stone").data[0].embedding
    CHECKS("base64 is the same", all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7) for a, b in zip(one, coded)), coded[:4])
    many = client.embeddings.create(model=name, input=["river", "water and stone", "🙂"], encoding_format="float")
    CHECKS.equal("a batch", [d.index for d in many.data], [0, 1, 2])
    CHECKS.equal("alone and in a batch", many.data[1].embedding, one)
    CHECKS("usage", many.usage.total_tokens == many.usage.prompt_tokens > 0, many.usage)
    CHECKS.raises("no input", openai.BadRequestError, lambda: client.embeddings.create(model=name, input=[]), status_code=400)


def keys(binary, folder):
    with serving.Server(binary, folder, "--api-key", KEY) as server:
        right = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY.upper(), max_retries=0)
        CHECKS("the right key", len(right.models.list().data) == 1)
        CHECKS.raises("a wrong key", openai.AuthenticationError, wrong.models.list, status_code=401)
        ask = lambda: wrong.chat.completions.create(model="x", messages=ASK)
        CHECKS.raises("a wrong key for a chat", openai.AuthenticationError, ask, status_code=401)
        CHECKS.equal("health needs none", server.status("/health"), 200)
        CHECKS.equal("the page needs none", server.status("/"), 200)
        CHECKS.equal("metrics need one", server.status("/metrics"), 401)


def without_template(binary, scratch):
    folder = serving.model(binary, os.path.join(scratch, "plain"), template=None)
    with serving.Server(binary, folder) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        name = client.models.list().data[0].id
        error = CHECKS.raises("a chat without template", openai.BadRequestError,
                              lambda: client.chat.completions.create(model=name, messages=ASK), status_code=400)
        CHECKS("the error says so", "chat template" in str(error), str(error))
        CHECKS("completions go on", client.completions.create(model=name, prompt="a", max_tokens=1).choices[0] is not None)


class Asked(serving.Server):
    def tokens(self, text):
        return self.post("/tokenize", {"prompt": text})[1]["tokens"]

    def rendered(self, messages):
        """Tokens of a conversation, by the template as this file has it."""
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
        return len(self.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"])


def small(server):
    """What OpenAI does not have."""
    status, coded = server.post("/tokenize", {"prompt": "water 🙂"})
    CHECKS.equal("tokenize", (status, coded["count"]), (200, len(coded["tokens"])))
    status, back = server.post("/detokenize", {"tokens": coded["tokens"]})
    CHECKS("detokenize", status == 200 and "water 🙂" in back["prompt"], back)
    about = server.get("/tokenizer_info")
    CHECKS("tokenizer_info has the template", "im_start" in json.dumps(about), about)
    document = server.get("/openapi.json")
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/embeddings", "/v1/messages", "/tokenize",
                 "/detokenize", "/tokenizer_info", "/v1/state"]:
        CHECKS(f"the OpenAPI document has {path}", path in document["paths"], list(document["paths"]))


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--zamba", required=True)
    parser.add_argument("--log", help="where the server's own log goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zamba-openai-") as scratch:
        folder = serving.model(args.zamba, os.path.join(scratch, "chat"))
        with Asked(args.zamba, folder, log=args.log) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
            name = models(client, server)
            for part, arguments in [(completions, (client, name, server)), (chat, (client, name, server)),
                                    (formats, (client, name)), (tools, (client, name)), (embeddings, (client, name)), (small, (server,))]:
                before = len(CHECKS.failures)
                part(*arguments)
                print(f"  {part.__name__}: {len(CHECKS.failures) - before} wrong")
        keys(args.zamba, folder)
        without_template(args.zamba, scratch)
    CHECKS.end()


if __name__ == "__main__":
    main()
