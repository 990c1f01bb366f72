"""The official client of Anthropic over `/v1/messages` of `zamba serve`, streamed and not.

    serve_anthropic.py --zamba PATH/zamba
"""

import argparse
import os
import sys
import tempfile

import anthropic

import serving

CHECKS = serving.Checks("serve_anthropic")
KEY = "a-key-of-this-test"
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False}}


# Sampling is no part of this client any more, but it is of the protocol.
GREEDY = {"temperature": 0}


def text(message):
    return "".join(block.text for block in message.content if block.type == "text")


def messages(client, name):
    create = lambda **more: client.messages.create(**{"model": name, "max_tokens": 16, "messages": ASK, "extra_body": GREEDY, **more})
    plain = create()
    CHECKS("a message", plain.type == "message" and plain.role == "assistant" and plain.id, plain)
    CHECKS("it ends for a reason", plain.stop_reason in ("end_turn", "max_tokens"), plain.stop_reason)
    CHECKS("usage", plain.usage.input_tokens > 0 and 0 < plain.usage.output_tokens <= 16, plain.usage)
    CHECKS.equal("the same again", text(create()), text(plain))
    ruled = create(system="Answer in verse, with care.")
    CHECKS("a system prompt costs tokens", total(ruled) > total(plain), (ruled.usage, plain.usage))
    blocks = create(system=[{"type": "text", "text": "Answer in verse, with care."}])
    CHECKS.equal("a system prompt in blocks", text(blocks), text(ruled))
    parts = create(messages=[{"role": "user", "content": [{"type": "text", "text": "What is the weather in Paris?"}]}])
    CHECKS.equal("content in blocks", text(parts), text(plain))
    longer = create(messages=ASK + [{"role": "assistant", "content": "Rain."}, {"role": "user", "content": "And in Oslo?"}])
    CHECKS("several turns", total(longer) > total(plain), longer.usage)
    CHECKS.equal("max_tokens", create(max_tokens=1).usage.output_tokens, 1)
    for more in [dict(extra_body={"top_p": 0.3}), dict(metadata={"user_id": "someone"})]:
        CHECKS(f"{more} is taken", create(**more).type == "message")
    CHECKS.equal("top_k 1 is greedy", text(create(extra_body={"top_k": 1, "temperature": 1})), text(plain))


def total(message):
    """All tokens of the prompt, those from the cache too."""
    usage = message.usage
    return usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)


def streams(client, name):
    ask = dict(model=name, max_tokens=24, messages=ASK, extra_body=GREEDY)
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    CHECKS.equal("streamed text", "".join(pieces), text(whole))
    CHECKS.equal("streamed end and usage", (final.stop_reason, final.usage.output_tokens), (whole.stop_reason, whole.usage.output_tokens))
    kinds = [event.type for event in client.messages.create(**ask, stream=True)]
    CHECKS.equal("the first event", kinds[0], "message_start")
    CHECKS.equal("the last events", kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
    CHECKS("blocks open before they are filled", kinds.index("content_block_start") < kinds.index("content_block_delta"), kinds)


def stop_sequences(client, name):
    ask = dict(model=name, max_tokens=60, messages=ASK, extra_body=GREEDY)
    whole = text(client.messages.create(**ask))
    word = whole[8:10]
    cut = client.messages.create(**ask, stop_sequences=["no such thing", word])
    CHECKS.equal("a stop sequence", (text(cut), cut.stop_reason, cut.stop_sequence), (whole[:whole.index(word)], "stop_sequence", word))
    with client.messages.stream(**ask, stop_sequences=[word]) as stream:
        final = stream.get_final_message()
    CHECKS.equal("a stop sequence in a stream", (text(final), final.stop_reason, final.stop_sequence),
                 (whole[:whole.index(word)], "stop_sequence", word))


def tools(client, name):
    create = lambda **more: client.messages.create(**{"model": name, "max_tokens": 300, "messages": ASK, "tools": [TOOL], **more})
    calls = []
    # A random model may go on calling until it has no tokens left.
    once = {"type": "any", "disable_parallel_tool_use": True}
    for choice in [once, {"type": "tool", "name": "get_weather"}]:
        made = create(tool_choice=choice)
        calls = [block for block in made.content if block.type == "tool_use"]
        CHECKS.equal(f"{choice}: it ends with a call", made.stop_reason, "tool_use")
        fits = lambda call: call.name == "get_weather" and call.id and set(call.input) == {"city"} and call.input["city"] in ("Paris", "Oslo")
        CHECKS(f"{choice}: calls that fit", calls and all(map(fits, calls)), made.content)
    called = made.content
    with client.messages.stream(model=name, max_tokens=300, messages=ASK, tools=[TOOL], tool_choice=once) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    CHECKS("a call in a stream", final.stop_reason == "tool_use" and any(b.type == "tool_use" and "city" in b.input for b in final.content), final)
    CHECKS("its arguments come in pieces", "input_json" in kinds, kinds)
    none = create(tool_choice={"type": "none"}, max_tokens=20)
    CHECKS("none: no calls", all(block.type == "text" for block in none.content), none.content)
    if calls:
        back = ASK + [{"role": "assistant", "content": called},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": calls[0].id, "content": "rain"}]}]
        CHECKS("results go back", create(messages=back, tool_choice={"type": "none"}, max_tokens=4).type == "message")
    CHECKS.raises("an unknown tool", anthropic.BadRequestError,
                  lambda: create(tool_choice={"type": "tool", "name": "nothing"}), status_code=400)


def counts(client, name):
    counted = client.messages.count_tokens(model=name, messages=ASK).input_tokens
    made = client.messages.create(model=name, max_tokens=1, messages=ASK)
    CHECKS.equal("counted before and after", counted, total(made))
    ruled = client.messages.count_tokens(model=name, messages=ASK, system="Be brief.", tools=[TOOL]).input_tokens
    CHECKS("system and tools count", ruled > counted, (ruled, counted))


def errors(client, name):
    create = lambda **more: client.messages.create(**{"model": name, "max_tokens": 4, "messages": ASK, **more})
    for more in [dict(messages=[]), dict(max_tokens=0), dict(extra_body={"temperature": 9}), dict(extra_body={"top_p": -1}),
                 dict(extra_body={"top_k": -1}), dict(extra_body={"no_such": 1}), dict(messages=[{"role": "nobody", "content": "a"}]),
                 dict(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]}]),
                 dict(thinking={"type": "enabled", "budget_tokens": 2000})]:
        error = CHECKS.raises(f"{str(more)[:60]}", anthropic.BadRequestError, lambda: create(**more), status_code=400)
        body = getattr(error, "body", None) or {}
        CHECKS(f"{str(more)[:60]}: Anthropic's shape", isinstance(body, dict) and body.get("type") == "error"
               and body["error"]["type"] == "invalid_request_error", body)
    error = CHECKS.raises("an unknown model", anthropic.NotFoundError, lambda: create(model="no-such-model"), status_code=404)
    CHECKS("its type", error and error.body["error"]["type"] == "not_found_error", getattr(error, "body", None))


def keys(binary, folder):
    with serving.Server(binary, folder, "--api-key", KEY) as server:
        right = anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)
        wrong = anthropic.Anthropic(base_url=server.url, api_key="another", max_retries=0)
        CHECKS("the right key", right.messages.count_tokens(model="tiny-chat", messages=ASK).input_tokens > 0)
        ask = lambda: wrong.messages.create(model="tiny-chat", max_tokens=1, messages=ASK)
        error = CHECKS.raises("a wrong key", anthropic.AuthenticationError, ask, status_code=401)
        CHECKS("its type", error and error.body["error"]["type"] == "authentication_error", getattr(error, "body", None))


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--zamba", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zamba-anthropic-") as scratch:
        folder = serving.model(args.zamba, scratch)
        with serving.Server(args.zamba, folder) as server:
            client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)
            name = os.path.basename(folder)
            for part in [messages, streams, stop_sequences, tools, counts, errors]:
                before = len(CHECKS.failures)
                part(client, name)
                print(f"  {part.__name__}: {len(CHECKS.failures) - before} wrong")
        keys(args.zamba, folder)
    CHECKS.end()


if __name__ == "__main__":
    main()
