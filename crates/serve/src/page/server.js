// What the server says of itself: load, cache and memory, from its metrics.

import { send } from "/assets/api.js";

/** Values by name, without those that have labels. */
export function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const found = /^([A-Za-z_:][\w:]*) (\S+)/.exec(line);
    if (found) values.set(found[1], Number(found[2]));
  }
  return values;
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i += 1) n /= 1024;
  return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

/** Tokens per second between two looks. */
function rate(before, now, name) {
  if (!before) return 0;
  const seconds = (now.time - before.time) / 1000;
  return Math.max(0, ((now.values.get(name) ?? 0) - (before.values.get(name) ?? 0)) / seconds);
}

const share = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–");

const POINTS = 60;
const EVERY = 2000;

export class Server {
  constructor(list, line, area) {
    this.list = list;
    this.line = line;
    this.area = area;
    this.rates = new Array(POINTS).fill(0);
    this.before = null;
    document.addEventListener("visibilitychange", () => this.start());
    this.start();
  }

  start() {
    clearInterval(this.timer);
    if (document.hidden) return;
    this.before = null;
    this.timer = setInterval(() => this.look(), EVERY);
    this.look();
  }

  async look() {
    let values;
    try {
      values = parse(await (await send("/metrics")).text());
    } catch {
      this.show([["State", "no answer"]]);
      return;
    }
    const now = { time: performance.now(), values };
    const speed = rate(this.before, now, "vllm:generation_tokens_total");
    if (this.before) this.rates = [...this.rates, speed].slice(-POINTS);
    this.before = now;
    this.draw();
    this.show(this.rows(values, speed));
  }

  rows(values, speed) {
    const get = (name) => values.get(name);
    const rows = [
      ["Speed", `${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tok/s`],
      ["Running", `${get("vllm:num_requests_running") ?? 0} · ${get("vllm:num_requests_waiting") ?? 0} waiting`],
      ["Cache hits", share(get("vllm:prefix_cache_hits_total"), get("vllm:prefix_cache_queries_total"))],
      ["Cache", bytes(get("zamba_cache_bytes") ?? 0)],
    ];
    const memory = get("process_resident_memory_bytes");
    if (memory !== undefined) rows.push(["Memory", bytes(memory)]);
    return rows;
  }

  show(rows) {
    const made = rows.flatMap(([name, value]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      [dt.textContent, dd.textContent] = [name, value];
      return [dt, dd];
    });
    this.list.replaceChildren(...made);
  }

  draw() {
    const most = Math.max(1, ...this.rates);
    const x = (i) => 120 - (this.rates.length - 1 - i) * (120 / (POINTS - 1));
    const y = (rate) => 26 - 24 * (rate / most);
    const points = this.rates.map((rate, i) => `${x(i).toFixed(1)} ${y(rate).toFixed(1)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${x(0).toFixed(1)} 28L${points.join("L")}L120 28Z`);
  }
}
