/** What a visitor chose, kept in this browser. Browsers that keep nothing (private windows) lose it with the page. */

const PREFIX = "echo_rtc.";

/**
 * @param {string} name
 * @returns {string | null}
 */
export function recall(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/**
 * @param {string} name
 * @param {string} value
 */
export function remember(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch {
    // Storage is full or forbidden; the choice still holds until the page is left.
  }
}
