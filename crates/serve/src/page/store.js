// What this browser keeps: conversations, settings and, until the tab is closed, the API key.

const PREFIX = "zamba.chat.";
const SETTINGS = "zamba.settings";
const KEY = "zamba.key";

export const NUMBERS = {
  temperature: { low: 0, high: 2 },
  top_p: { low: 0, high: 1 },
  top_k: { low: 0, whole: true },
  min_p: { low: 0, high: 1 },
  max_tokens: { low: 1, whole: true },
  seed: { low: 0, whole: true },
};

const DEFAULTS = { system: "", max_tokens: "512", probs: true, tint: false };

/** Says what is wrong with a number as it was typed; nothing if it is empty or right. */
export function wrongNumber(name, text) {
  const rule = NUMBERS[name];
  if (text === "") return "";
  const value = Number(text);
  if (!Number.isFinite(value)) return "is not a number";
  if (rule.whole && !Number.isSafeInteger(value)) return "must be a whole number";
  if (value < rule.low) return `must not be below ${rule.low}`;
  if (rule.high !== undefined && value > rule.high) return `must not be above ${rule.high}`;
  return "";
}

function read(storage, key) {
  try {
    return storage().getItem(key);
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    if (value === null) storage().removeItem(key);
    else storage().setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

const local = () => window.localStorage;
const session = () => window.sessionStorage;

function parse(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

/** Settings; what is not known or not right is as if it were not there. */
export function settings() {
  const kept = parse(read(local, SETTINGS) ?? "") ?? {};
  const all = { ...DEFAULTS };
  for (const name of Object.keys(NUMBERS)) {
    if (typeof kept[name] === "string" && !wrongNumber(name, kept[name])) all[name] = kept[name];
    all[name] ??= "";
  }
  if (typeof kept.system === "string") all.system = kept.system;
  for (const name of ["probs", "tint"]) if (typeof kept[name] === "boolean") all[name] = kept[name];
  return all;
}

export const saveSettings = (all) => write(local, SETTINGS, JSON.stringify(all));
export const apiKey = () => read(session, KEY) ?? "";
export const saveApiKey = (key) => write(session, KEY, key || null);
export const theme = () => read(local, "zamba.theme") ?? "auto";
export const saveTheme = (name) => write(local, "zamba.theme", name === "auto" ? null : name);

/** A conversation as it was kept; nothing if it is not one. */
function conversation(text) {
  const kept = parse(text);
  if (typeof kept?.id !== "string" || !Array.isArray(kept.messages)) return null;
  const fits = (m) => m && (m.role === "user" || m.role === "assistant") && typeof m.content === "string";
  return { id: kept.id, changed: Number(kept.changed) || 0, messages: kept.messages.filter(fits) };
}

/** All conversations, the one that was changed last first. Each has a key of its own, so that two tabs do not undo each
 * other's work. */
export function conversations() {
  const all = [];
  try {
    const storage = local();
    for (let i = 0; i < storage.length; i += 1) {
      const key = storage.key(i);
      const kept = key.startsWith(PREFIX) ? conversation(storage.getItem(key)) : null;
      if (kept) all.push(kept);
    }
  } catch {
    // Without storage there are none.
  }
  return all.sort((a, b) => b.changed - a.changed || (a.id < b.id ? 1 : -1));
}

export const isConversation = (key) => key === null || key.startsWith(PREFIX);

export function load(id) {
  return conversation(read(local, PREFIX + id));
}

export function create() {
  const id = `${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  return { id, changed: Date.now(), messages: [] };
}

/** Keeps a conversation. When storage is full the probabilities go first: the text matters more. */
export function save(chat) {
  const key = PREFIX + chat.id;
  if (write(local, key, JSON.stringify(chat))) return true;
  const bare = { ...chat, messages: chat.messages.map(({ parts, ...rest }) => rest) };
  return write(local, key, JSON.stringify(bare));
}

export const remove = (id) => write(local, PREFIX + id, null);

/** What a conversation is about: its first line. */
export function title(chat) {
  const first = chat.messages.find((m) => m.role === "user")?.content.trim().split("\n", 1)[0] ?? "";
  return first ? [...first].slice(0, 80).join("") : "New conversation";
}
