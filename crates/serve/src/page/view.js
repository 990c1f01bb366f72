// Messages and the list of conversations as elements. Whatever a model or a person wrote goes in as text, never as markup.

import { partElement } from "/assets/probs.js";
import { title } from "/assets/store.js";

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function button(symbol, label, action, classes = "icon") {
  const out = document.createElement("button");
  out.type = "button";
  out.className = classes;
  out.setAttribute("aria-label", label);
  out.title = label;
  out.append(icon(symbol));
  out.addEventListener("click", action);
  return out;
}

const number = (n, digits) => n.toLocaleString("en", { maximumFractionDigits: digits });

/** Speed and size of an answer in a line. */
export function statsText(stats) {
  if (!stats) return "";
  const parts = [];
  if (stats.tokens !== undefined) parts.push(`${number(stats.tokens, 0)} tokens`);
  if (stats.rate) parts.push(`${number(stats.rate, stats.rate < 10 ? 1 : 0)} tok/s`);
  if (stats.first !== undefined) parts.push(`first after ${number(stats.first, 0)} ms`);
  if (stats.prompt !== undefined) parts.push(`${number(stats.cached ?? 0, 0)} of ${number(stats.prompt, 0)} prompt tokens reused`);
  if (stats.end) parts.push(stats.end);
  return parts.join(" · ");
}

/** The element of one message. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    /** Parts that are not on the screen yet. */
    this.waiting = [];
    this.frame = 0;
    const mine = message.role === "user";
    this.element = document.createElement("article");
    this.element.className = `msg ${message.role}`;
    this.element.setAttribute("aria-label", mine ? "You" : "Answer");
    this.text = document.createElement("div");
    this.text.className = "text";
    this.text.dir = "auto";
    this.problem = document.createElement("p");
    this.problem.className = "problem";
    const foot = document.createElement("footer");
    this.stats = document.createElement("span");
    this.stats.className = "stats";
    const tools = document.createElement("span");
    tools.className = "tools";
    tools.append(...this.tools(mine, actions));
    foot.append(this.stats, tools);
    this.element.append(this.text, this.problem, foot);
    this.draw();
  }

  tools(mine, actions) {
    const copy = button("copy", "Copy", () => actions.copy(this.message));
    if (mine) return [copy, button("edit", "Edit and send again", () => actions.edit(this.message))];
    return [copy, button("again", "Answer again", () => actions.again(this.message), "icon again")];
  }

  /** All of it anew. */
  draw() {
    const { message } = this;
    if (message.parts) this.text.replaceChildren(...message.parts.map(partElement));
    else this.text.textContent = message.content;
    this.status();
  }

  /** One more part at the end. Parts may come faster than screens are drawn, so they wait for the next one. */
  append(part) {
    this.waiting.push(part);
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  /** Shows what waits. */
  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.text.append(...this.waiting.map(partElement));
    if (this.waiting.some((part) => part.k)) this.reachable();
    this.waiting = [];
    this.shown?.();
  }

  reachable() {
    if (this.text.tabIndex === 0 && this.text.hasAttribute("tabindex")) return;
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", "Answer; arrow keys go through its tokens");
  }

  /** Everything but the text. */
  status() {
    const { message } = this;
    if (message.parts?.some((part) => part.k)) this.reachable();
    this.stats.textContent = statsText(message.stats);
    this.problem.textContent = message.problem ?? "";
    this.problem.hidden = !message.problem;
  }

  working(yes) {
    this.element.classList.toggle("working", yes);
  }
}

/** One line of the list of conversations. */
export function listItem(chat, current, actions) {
  const li = document.createElement("li");
  const open = document.createElement("button");
  open.type = "button";
  open.className = "open";
  open.textContent = title(chat);
  open.dir = "auto";
  if (current) open.setAttribute("aria-current", "page");
  open.addEventListener("click", () => actions.open(chat.id));
  const bin = button("bin", `Delete “${title(chat)}”`, () => actions.remove(chat.id), "icon bin");
  li.append(open, bin);
  return li;
}
