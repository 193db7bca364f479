/**
 * Dark or light: as the system has it, until the visitor says otherwise.
 *
 * Loaded before the first paint, and applies the choice on loading, so that no page flashes in the wrong colours.
 */

import { recall, remember } from "./preferences.js";

const DARK = matchMedia("(prefers-color-scheme: dark)");

apply(recall("theme"));

/**
 * Makes a button switch between the two; it is pressed while the page is dark.
 * @param {HTMLButtonElement} button
 */
export function bindThemeButton(button) {
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    remember("theme", theme);
    apply(theme);
    show();
  });
  DARK.addEventListener("change", show);
  show();
}

/** @param {string | null} theme */
function apply(theme) {
  if (theme === "dark" || theme === "light") {
    document.documentElement.dataset.theme = theme;
  }
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme === undefined ? DARK.matches : theme === "dark";
}
