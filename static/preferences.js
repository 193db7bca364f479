/**
 * What a visitor chose, kept in this browser; secrets in this tab only. Browsers that keep nothing (private windows)
 * lose it with the page.
 */

const PREFIX = "echo_rtc.";

/**
 * @param {string} name
 * @param {boolean} [isSecret]
 * @returns {string | null}
 */
export function recall(name, isSecret = false) {
  try {
    return (isSecret ? sessionStorage : localStorage).getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/**
 * @param {string} name
 * @param {string} value
 * @param {boolean} [isSecret]
 */
export function remember(name, value, isSecret = false) {
  try {
    (isSecret ? sessionStorage : localStorage).setItem(PREFIX + name, value);
  } catch {
    // Storage is full or forbidden; the choice still holds until the page is left.
  }
}
