// Tokens that can be looked at: how likely each was, and what else the model considered.

// Signs that every font has.
const SHOWN = { " ": "·", "\n": "↵", "\t": "→", "\r": "←" };

/** A token's text with its blanks made visible. */
export const visible = (text) => (text === "" ? "∅" : text.replace(/[ \n\t\r]/g, (c) => SHOWN[c]));

export const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  if (p >= 99.95) return "100 %";
  if (p >= 10) return `${p.toFixed(1)} %`;
  return p >= 0.01 ? `${p.toFixed(2)} %` : "< 0.01 %";
};

/** How unlikely, from 0 (nearly certain) to 4. */
function level(tokens) {
  const p = Math.exp(Math.min(...tokens.map((t) => t.logprob)));
  return [0.8, 0.5, 0.2, 0.05].filter((limit) => p < limit).length;
}

/** The elements of a part of an answer, `{ t: text, k: tokens }`. */
export function partElement(part) {
  const span = document.createElement("span");
  span.textContent = part.t;
  if (part.k?.length) {
    span.className = "tok";
    span.dataset.level = level(part.k);
    if (part.t === "") span.classList.add("unseen");
    span.tokens = part.k;
  }
  return span;
}

function row(token, chosen) {
  const tr = document.createElement("tr");
  if (chosen) tr.className = "chosen";
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = visible(token.text);
  const bar = document.createElement("td");
  bar.className = "bar-cell";
  const fill = document.createElement("i");
  fill.style.width = `${Math.max(1, 100 * Math.exp(token.logprob))}%`;
  bar.append(fill);
  const value = document.createElement("td");
  value.className = "n";
  value.textContent = percent(token.logprob);
  tr.append(name, bar, value);
  return tr;
}

/** A table of one token and its alternatives. */
function table(token) {
  const out = document.createElement("table");
  const body = out.createTBody();
  let found = false;
  for (const other of token.top) {
    // Two tokens may have the same text, so the probability has to agree too.
    const chosen = !found && other.text === token.text && Math.abs(other.logprob - token.logprob) < 1e-6;
    found ||= chosen;
    body.append(row(other, chosen));
  }
  if (!found) body.append(row(token, true));
  return out;
}

/** In words, for those who listen. */
function words(token) {
  const others = token.top.filter((t) => t.text !== token.text).slice(0, 3);
  const list = others.map((t) => `${visible(t.text)} ${percent(t.logprob)}`).join(", ");
  return `${visible(token.text)} ${percent(token.logprob)}${list ? `; instead: ${list}` : ""}`;
}

/** Shows the probabilities of the token under the pointer, or the one that the arrow keys stand on. */
export class Probs {
  constructor(box, log, say) {
    this.box = box;
    this.say = say;
    this.at = null;
    log.addEventListener("pointerover", (e) => e.pointerType !== "touch" && this.point(e.target));
    log.addEventListener("pointerleave", () => !this.walking && this.hide());
    log.addEventListener("click", (e) => this.point(e.target));
    log.addEventListener("keydown", (e) => this.key(e));
    log.addEventListener("focusout", (e) => e.target.classList.contains("text") && this.hide());
    window.addEventListener("scroll", () => this.place(), { capture: true, passive: true });
    window.addEventListener("resize", () => this.hide());
  }

  point(target) {
    const token = target.closest?.(".tok");
    // A selection is being made, which a box would hide.
    if (!token || !document.getSelection().isCollapsed) this.hide();
    else this.show(token);
  }

  show(token) {
    if (this.at === token) return;
    this.hide();
    this.at = token;
    token.classList.add("at");
    const shown = token.tokens.slice(-4);
    this.box.replaceChildren(...shown.map(table));
    this.box.hidden = false;
    this.place();
  }

  place() {
    if (!this.at) return;
    const rect = this.at.getClientRects()[0];
    if (!rect) return this.hide();
    const { offsetWidth: w, offsetHeight: h } = this.box;
    const below = rect.bottom + 6 + h <= window.innerHeight;
    const left = Math.min(Math.max(8, rect.left), window.innerWidth - w - 8);
    this.box.style.left = `${left}px`;
    this.box.style.top = `${below ? rect.bottom + 6 : Math.max(8, rect.top - 6 - h)}px`;
  }

  hide() {
    this.at?.classList.remove("at");
    this.at = null;
    this.walking = false;
    this.box.hidden = true;
  }

  get open() {
    return this.at !== null;
  }

  key(event) {
    const text = event.target;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !text.classList.contains("text")) return;
    const all = [...text.querySelectorAll(".tok")];
    if (!all.length) return;
    event.preventDefault();
    const now = all.indexOf(this.at);
    const next = now < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(now + step, 0), all.length - 1);
    all[next].scrollIntoView({ block: "nearest" });
    this.show(all[next]);
    this.walking = true;
    this.say(all[next].tokens.map(words).join(". "));
  }
}
