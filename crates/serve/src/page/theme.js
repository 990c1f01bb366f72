// Runs before the first paint, so that a chosen theme does not flash in the other one.
"use strict";
{
  let theme = "auto";
  try {
    theme = localStorage.getItem("zamba.theme") || "auto";
  } catch {
    // Storage may be switched off; then the theme is that of the system.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
