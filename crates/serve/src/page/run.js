// One answer on its way: text, tokens and times are noted in its message as they come.

import { ApiError, answer, lacksTemplate } from "/assets/api.js";

const round = (x) => (typeof x === "number" ? Math.round(x * 1e4) / 1e4 : 0);

/** A token as it is kept: rounded, or storage would be full of digits. */
function token({ text, logprob, top }) {
  return { text, logprob: round(logprob), top: top.map((t) => ({ text: t.text, logprob: round(t.logprob) })) };
}

const ENDS = { length: "ended at the length limit", content_filter: "ended by a filter" };

export class Run {
  constructor(chat, message) {
    this.chat = chat;
    this.message = message;
    this.controller = new AbortController();
    this.view = null;
    this.waiting = [];
    this.count = 0;
  }

  stop() {
    this.controller.abort();
  }

  /** Runs to the end. `server.templated` becomes false if it turns out that there are no turns. */
  async go(server, settings, changed) {
    const { message } = this;
    message.parts = [];
    this.began = performance.now();
    try {
      await this.read(server, settings, changed);
    } catch (error) {
      this.failed(error);
    }
    this.flush();
    this.measure();
  }

  async read(server, settings, changed) {
    try {
      await this.pieces(server, settings, changed);
    } catch (error) {
      if (!server.templated || !lacksTemplate(error)) throw error;
      server.templated = false;
      await this.pieces(server, settings, changed);
    }
  }

  async pieces(server, settings, changed) {
    const before = this.chat.messages.slice(0, this.chat.messages.indexOf(this.message));
    const { signal } = this.controller;
    const { name: model, templated } = server;
    for await (const piece of answer({ model, chat: before, settings, templated, signal })) {
      this.take(piece);
      changed();
    }
  }

  take({ text, tokens, finish, usage }) {
    this.waiting.push(...tokens.map(token));
    if (text || tokens.length) {
      this.last = performance.now();
      this.first ??= this.last;
      this.count += Math.max(1, tokens.length);
    }
    if (text) this.part(text);
    if (finish) this.end = ENDS[finish];
    if (usage) this.usage = usage;
  }

  /** Text with the tokens that made it; several if they were held back together. */
  part(t) {
    const part = this.waiting.length ? { t, k: this.waiting } : { t };
    this.waiting = [];
    this.message.parts.push(part);
    this.message.content += t;
    this.view?.append(part);
  }

  /** Tokens that have no text, such as the one that ends an answer. */
  flush() {
    if (this.waiting.length) this.part("");
  }

  failed(error) {
    if (error.name === "AbortError") this.end = "stopped";
    else this.message.problem = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
    this.error = error;
  }

  measure() {
    const seconds = (this.last - this.first) / 1000;
    const tokens = this.usage?.completion_tokens ?? this.count;
    const stats = { tokens, end: this.end };
    if (this.first !== undefined) stats.first = Math.round(this.first - this.began);
    if (tokens > 1 && seconds > 0) stats.rate = (tokens - 1) / seconds;
    if (this.usage) {
      stats.prompt = this.usage.prompt_tokens;
      stats.cached = this.usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
    this.message.stats = stats;
  }
}
