// Talks to the server: which model it has, and answers as they come.

import { apiKey } from "/assets/store.js";

/** A refusal or failure, in the server's words. */
export class ApiError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.message ?? `the server answers ${status}`);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
  }
}

/** Sends a request; gives the response if it is a success. */
export async function send(path, { body, signal } = {}) {
  const headers = {};
  const key = apiKey();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { error: { message: "The server cannot be reached." } });
  }
  if (response.ok) return response;
  throw new ApiError(response.status, await response.json().catch(() => null));
}

/** The data of server-sent events, one by one. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
      }
    }
  }
}

/** Settings as fields of a request; what is empty is left to the server. */
function fields(settings) {
  const out = {};
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"]) {
    if (settings[name] !== "") out[name] = Number(settings[name]);
  }
  return out;
}

/** How many alternatives are asked for. */
const ALTERNATIVES = 5;

function chatRequest(model, chat, settings) {
  const messages = chat.map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const probs = settings.probs ? { logprobs: true, top_logprobs: ALTERNATIVES } : {};
  return { model, messages, ...fields(settings), ...probs, stream: true, stream_options: { include_usage: true } };
}

/** Without a chat template there are no turns: the model continues all that was written. */
function textRequest(model, chat, settings) {
  const prompt = chat.map((m) => m.content).join("");
  const probs = settings.probs ? { logprobs: ALTERNATIVES } : {};
  return { model, prompt, ...fields(settings), ...probs, stream: true, stream_options: { include_usage: true } };
}

function chatTokens(logprobs) {
  const of = (t) => ({ text: t.token, logprob: t.logprob });
  return (logprobs?.content ?? []).map((t) => ({ ...of(t), top: (t.top_logprobs ?? []).map(of) }));
}

function textTokens(logprobs) {
  const top = (i) => Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([text, logprob]) => ({ text, logprob }));
  return (logprobs?.tokens ?? []).map((text, i) => ({ text, logprob: logprobs.token_logprobs[i], top: top(i) }));
}

/** One answer, in pieces `{ text, tokens, finish, usage }`. */
export async function* answer({ model, chat, settings, templated, signal }) {
  const [path, body] = templated
    ? ["/v1/chat/completions", chatRequest(model, chat, settings)]
    : ["/v1/completions", textRequest(model, chat, settings)];
  const response = await send(path, { body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk);
    const choice = chunk.choices?.[0];
    const text = (templated ? choice?.delta?.content : choice?.text) ?? "";
    const tokens = templated ? chatTokens(choice?.logprobs) : textTokens(choice?.logprobs);
    yield { text, tokens, finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null };
  }
  throw new ApiError(0, { error: { message: "The connection was cut before the answer was complete." } });
}

/** Whether an error says that the model has no chat template. */
export function lacksTemplate(error) {
  return error instanceof ApiError && error.status === 400 && /chat template/i.test(error.message);
}

/** The first model of the server. */
export async function model(signal) {
  const list = await (await send("/v1/models", { signal })).json();
  return list.data[0];
}
