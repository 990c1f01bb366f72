// The two dialogs: settings, and the key of a server that asks for one.

import { NUMBERS, apiKey, saveApiKey, saveSettings, settings, theme, saveTheme, wrongNumber } from "/assets/store.js";
import { icon } from "/assets/view.js";

const $ = (id) => document.getElementById(id);

/** The drawer with the settings. Every change counts at once if it is right. */
export class Settings {
  constructor(changed) {
    this.all = settings();
    this.changed = changed;
    this.form = $("settings-form");
    this.dialog = $("settings");
    for (const field of this.form.elements) {
      if (field.name) field.addEventListener("input", () => this.input(field));
    }
    $("open-settings").addEventListener("click", () => this.open());
    // A click on the backdrop, which belongs to the dialog itself.
    this.dialog.addEventListener("click", (e) => e.target === this.dialog && this.dialog.close());
    this.fill();
  }

  open() {
    this.fill();
    this.dialog.showModal();
  }

  fill() {
    for (const field of this.form.elements) {
      if (!field.name) continue;
      if (field.type === "checkbox") field.checked = this.all[field.name];
      else field.value = this.all[field.name];
      field.removeAttribute("aria-invalid");
    }
    $("settings-wrong").textContent = "";
  }

  input(field) {
    if (field.type === "checkbox") this.all[field.name] = field.checked;
    else if (!(field.name in NUMBERS)) this.all[field.name] = field.value;
    else if (!this.number(field)) return;
    saveSettings(this.all);
    this.changed(this.all);
  }

  /** Takes a number over if it is one; says what is wrong if not. */
  number(field) {
    const typed = field.validity.badInput ? "?" : field.value.trim();
    const wrong = wrongNumber(field.name, typed);
    field.toggleAttribute("aria-invalid", Boolean(wrong));
    const name = field.labels[0].textContent.trim();
    $("settings-wrong").textContent = wrong ? `${name} ${wrong}.` : "";
    if (!wrong) this.all[field.name] = typed;
    return !wrong;
  }
}

/** Asks for a key. Gives whether there is a new one. */
export function askForKey(note) {
  const dialog = $("key");
  if (dialog.open) return Promise.resolve(false);
  $("key-note").textContent = note;
  $("key-field").value = apiKey();
  dialog.returnValue = "cancel";
  dialog.showModal();
  $("key-field").select();
  return new Promise((resolve) => {
    const closed = () => {
      const taken = dialog.returnValue === "ok";
      if (taken) saveApiKey($("key-field").value.trim());
      $("key-field").value = "";
      resolve(taken);
    };
    dialog.addEventListener("close", closed, { once: true });
  });
}

const THEMES = ["auto", "light", "dark"];

/** The button that goes through the themes. */
export function themeButton() {
  const button = $("theme");
  const show = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    const label = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" }[name];
    button.setAttribute("aria-label", label);
    button.title = label;
    button.replaceChildren(icon(name));
  };
  let now = THEMES.includes(theme()) ? theme() : "auto";
  show(now);
  button.addEventListener("click", () => {
    now = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    saveTheme(now);
    show(now);
  });
}
