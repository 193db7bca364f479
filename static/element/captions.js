/** Captions: the words of pushed speech, shown for as long as their sound plays. */

/**
 * @typedef {object} Caption What the server says as the first sound of some words leaves, and once more when it has
 *     learned when they end; times since the stream began to play. Without text, what is shown is taken away.
 * @property {string} eventId
 * @property {string} text
 * @property {number} startMs
 * @property {number} endMs
 */

/** Words are shown no longer than the server's queue of sound can be. */
const MAX_SHOWN_MS = 150_000;

/**
 * @param {Record<string, unknown>} message Of the type "caption".
 * @returns {Caption | null} null for what cannot be read.
 */
export function captionOf({ event_id: eventId, text, start_ms: startMs, end_ms: endMs }) {
  if (typeof text !== "string" || typeof startMs !== "number" || typeof endMs !== "number") {
    return null;
  }
  return { eventId: String(eventId), text, startMs, endMs };
}

/** Holds the present caption until its end, or until another one replaces it. */
export class Captions {
  /** @type {(caption: Caption) => void} */ #show;
  /** @type {Caption | null} */ #shown = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  /** When the words began that came last, and when that was (`performance.now()`). */
  #begun = { eventId: "", startMs: -1, atMs: 0 };

  /** @param {(caption: Caption) => void} show Is given each caption, and one without text when it is over. */
  constructor(show) {
    this.#show = show;
  }

  /** @param {Caption} caption The caption whose sound begins now; one that is known already is ignored. */
  take(caption) {
    clearTimeout(this.#timer);
    const now = performance.now();
    if (caption.eventId !== this.#begun.eventId || caption.startMs !== this.#begun.startMs) {
      this.#begun = { eventId: caption.eventId, startMs: caption.startMs, atMs: now };
    }
    this.#shown = caption.text === "" ? null : caption;
    this.#show(caption);
    if (this.#shown !== null) {
      const lengthMs = Math.min(MAX_SHOWN_MS, Math.max(0, caption.endMs - caption.startMs));
      this.#timer = setTimeout(() => this.clear(), Math.max(0, this.#begun.atMs + lengthMs - now));
    }
  }

  /** Takes away what is shown. */
  clear() {
    clearTimeout(this.#timer);
    if (this.#shown !== null) {
      const over = { ...this.#shown, text: "" };
      this.#shown = null;
      this.#show(over);
    }
  }
}
