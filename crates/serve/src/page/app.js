// The page: conversations on the left, one of them in the middle, a field to write in.

import { ApiError, model } from "/assets/api.js";
import { Probs } from "/assets/probs.js";
import { Run } from "/assets/run.js";
import { Server } from "/assets/server.js";
import { Settings, askForKey, themeButton } from "/assets/settings.js";
import * as store from "/assets/store.js";
import { MessageView, listItem } from "/assets/view.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const prompt = $("prompt");
const scroll = $("scroll");

/** The model that is served, and whether it knows turns. */
const server = { name: "", templated: true };
/** Answers on their way, by conversation. */
const runs = new Map();
let chat = store.create();
/** Which message of the conversation is written anew. */
let editing = null;
let views = new Map();

const say = (words) => {
  $("status").textContent = words;
};

// ---- a note at the bottom, with something to click

let toastTimer;
function toast(words, action, act) {
  const box = $("toast");
  box.replaceChildren(words);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action;
    button.addEventListener("click", () => {
      box.hidden = true;
      act();
    });
    box.append(" ", button);
  }
  box.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (box.hidden = true), 8000);
}

// ---- scrolling

const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
let follow = true;

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

scroll.addEventListener("scroll", () => {
  follow = atEnd();
  $("down").hidden = follow;
});

$("down").addEventListener("click", () => {
  toEnd();
  prompt.focus();
});

// ---- what is shown

function keep(which) {
  which.changed = Date.now();
  if (!store.save(which)) toast("This browser has no more room. Delete a conversation to keep new ones.");
}

function showList() {
  const all = store.conversations();
  const actions = { open, remove };
  $("list").replaceChildren(...all.map((c) => listItem(c, c.id === chat.id, actions)));
}

function showButtons() {
  const running = runs.has(chat.id);
  // The button that has the focus must not vanish under it.
  const focused = document.activeElement === $("send") || document.activeElement === $("stop");
  $("send").hidden = running;
  $("stop").hidden = !running;
  log.setAttribute("aria-busy", String(running));
  if (focused) (running ? $("stop") : prompt).focus();
}

function showHead() {
  $("title").textContent = store.title(chat);
  document.title = chat.messages.length ? `${store.title(chat)} – Zamba` : "Zamba";
  $("welcome").hidden = chat.messages.length > 0;
  $("welcome-note").textContent = server.templated
    ? ""
    : "This model has no chat template, so it knows no turns: it continues what you write.";
}

function showChat() {
  probs.hide();
  views = new Map();
  for (const message of chat.messages) addView(message);
  log.replaceChildren(...[...views.values()].map((view) => view.element));
  const run = runs.get(chat.id);
  if (run) {
    follows(run);
  }
  showHead();
  showButtons();
  toEnd();
}

/** Shows an answer that is under way as it grows. */
function follows(run) {
  run.view = views.get(run.message);
  run.view.working(true);
  run.view.shown = () => follow && toEnd();
}

function addView(message) {
  const view = new MessageView(message, actions);
  views.set(message, view);
  return view;
}

// ---- conversations

function open(id) {
  leave();
  chat = runs.get(id)?.chat ?? store.load(id) ?? store.create();
  history.replaceState(null, "", chat.messages.length ? `#c=${chat.id}` : location.pathname);
  showChat();
  showList();
  closeMenu();
  // On a phone the focus would bring up the keyboard, which hides half of what is to be read.
  if (!window.matchMedia("(pointer: coarse)").matches) prompt.focus();
}

/** Looks away from the conversation that is shown. Its answer goes on. */
function leave() {
  const run = runs.get(chat.id);
  if (run) run.view = null;
  stopEditing();
}

function remove(id) {
  const run = runs.get(id);
  run?.stop();
  const gone = run?.chat ?? store.load(id);
  if (run) run.dead = true;
  store.remove(id);
  if (id === chat.id) open("");
  showList();
  $("new").focus();
  toast("The conversation is deleted.", "Undo", () => {
    if (run) run.dead = false;
    store.save(gone);
    open(id);
  });
}

$("delete-all").addEventListener("click", () => {
  const all = store.conversations();
  for (const { id } of all) {
    const run = runs.get(id);
    if (run) run.dead = true;
    run?.stop();
    store.remove(id);
  }
  open("");
  $("settings").close();
  toast(all.length === 1 ? "One conversation is deleted." : `${all.length} conversations are deleted.`, "Undo", () => {
    all.forEach(store.save);
    showList();
  });
});

$("new").addEventListener("click", () => open(""));

// Another tab has changed something.
window.addEventListener("storage", ({ key }) => {
  if (!store.isConversation(key)) return;
  showList();
  const there = store.load(chat.id);
  if (runs.has(chat.id) || !there || there.changed <= chat.changed) return;
  chat = there;
  showChat();
});

// ---- writing and answering

async function generate() {
  const message = { role: "assistant", content: "" };
  chat.messages.push(message);
  const run = new Run(chat, message);
  runs.set(chat.id, run);
  log.append(addView(message).element);
  follows(run);
  keep(chat);
  history.replaceState(null, "", `#c=${chat.id}`);
  showHead();
  showList();
  showButtons();
  toEnd();
  say("The answer has begun.");
  await run.go(server, settings.all, throttledKeep(run));
  finished(run);
}

/** Keeps an answer that is under way about once a second, so that a reload loses little of it. */
function throttledKeep(run) {
  let kept = performance.now();
  return () => {
    if (performance.now() - kept < 1000 || run.dead) return;
    kept = performance.now();
    keep(run.chat);
  };
}

function finished(run) {
  runs.delete(run.chat.id);
  run.view?.flush();
  run.view?.working(false);
  run.view?.status();
  if (!run.dead) keep(run.chat);
  showList();
  if (run.chat.id !== chat.id) return;
  showHead();
  showButtons();
  if (follow) toEnd();
  say(run.message.problem ?? `The answer is ${run.end === "stopped" ? "stopped" : "complete"}.`);
  if (run.error instanceof ApiError && run.error.status === 401) withKey(run.message);
}

async function withKey(message) {
  if (await askForKey("The server asks for a key. It is kept until this tab is closed.")) {
    await begin();
    actions.again(message);
  }
}

const actions = {
  async copy(message) {
    try {
      await navigator.clipboard.writeText(message.content);
      toast("Copied.");
    } catch {
      toast("The browser does not allow copying here.");
    }
  },
  edit(message) {
    editing = message;
    prompt.value = message.content;
    views.get(message)?.element.classList.add("editing");
    fit();
    prompt.focus();
    toast("What you send replaces this message and all that follows it. Esc gives that up.");
  },
  again(message) {
    if (runs.has(chat.id)) return;
    cut(message);
    generate();
  },
};

/** Forgets a message and all that follow. */
function cut(message) {
  const from = chat.messages.indexOf(message);
  if (from < 0) return;
  for (const gone of chat.messages.splice(from)) {
    views.get(gone)?.element.remove();
    views.delete(gone);
  }
}

function stopEditing() {
  if (!editing) return;
  views.get(editing)?.element.classList.remove("editing");
  editing = null;
  prompt.value = "";
  fit();
}

function submit() {
  const content = prompt.value;
  if (!content.trim() || runs.has(chat.id)) return;
  if (editing) cut(editing);
  editing = null;
  const message = { role: "user", content };
  chat.messages.push(message);
  log.append(addView(message).element);
  prompt.value = "";
  fit();
  generate();
}

/** Makes the field as high as its text. */
function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, window.innerHeight * 0.4)}px`;
}

prompt.addEventListener("input", fit);

prompt.addEventListener("keydown", (event) => {
  // Enter also ends the composition of a character.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});

$("stop").addEventListener("click", () => runs.get(chat.id)?.stop());

// ---- keys

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.isComposing) return;
  if (event.key === "Escape") escape();
  const typing = event.target.closest?.("textarea, input");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    prompt.focus();
  }
});

function escape() {
  if (probs.open) return probs.hide();
  if (document.body.classList.contains("menu")) {
    closeMenu();
    return $("menu").focus();
  }
  if (runs.has(chat.id)) return runs.get(chat.id).stop();
  stopEditing();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  prompt.focus();
});

// ---- the list on a small screen

const small = window.matchMedia("(max-width: 52rem)");

/** What is out of sight must be out of the way of keys too. */
function placeMenu() {
  const shown = document.body.classList.contains("menu");
  $("sidebar").inert = small.matches && !shown;
  document.querySelector("main").inert = small.matches && shown;
  $("scrim").hidden = !(small.matches && shown);
  $("menu").setAttribute("aria-expanded", String(shown));
}

function closeMenu() {
  document.body.classList.remove("menu");
  placeMenu();
}

$("menu").addEventListener("click", () => {
  document.body.classList.add("menu");
  placeMenu();
  $("new").focus();
});
for (const id of ["close-menu", "scrim"]) {
  $(id).addEventListener("click", () => {
    closeMenu();
    $("menu").focus();
  });
}
small.addEventListener("change", closeMenu);

// ---- begin

/** Asks which model there is. */
async function begin() {
  try {
    const found = await model();
    server.name = found.id;
    if (typeof found.chat === "boolean") server.templated = found.chat;
    $("model").textContent = found.id;
  } catch (error) {
    $("model").textContent = error.message;
    if (error.status !== 401) return;
    if (await askForKey("The server asks for a key. It is kept until this tab is closed.")) await begin();
  }
  showHead();
}

function applySettings(all) {
  log.classList.toggle("tint", all.tint);
}

$("change-key").addEventListener("click", async () => {
  if (await askForKey("Needed only if the server asks for one. It is kept until this tab is closed.")) begin();
});

const probs = new Probs($("probs"), log, say);
const settings = new Settings(applySettings);
applySettings(settings.all);
themeButton();
placeMenu();
new Server($("server"), $("spark-line"), $("spark-area"));
open(/^#c=([\w-]+)$/.exec(location.hash)?.[1] ?? "");
begin();
