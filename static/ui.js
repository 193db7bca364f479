/**
 * What stands around the element on the page: shows what it is told, and tells what the visitor chooses.
 *
 * Holds no call, no microphone and no decision. Every text comes from outside, and is only ever set as text.
 */

/** @import { StreamStatistics } from "../element/connection.js" */
/** @import { LinkFigures } from "../element/figures.js" */
/** @import { Avatar, Configuration } from "../element/server.js" */
/** @import { Device } from "./devices.js" */

/** @typedef {"off" | "calling" | "live"} Phase No call, a call without a picture (yet, or for now), one with it. */

/** Stands for the sample voice where microphones have their ids. */
export const SAMPLE = "sample voice";

/** Stands for typed text there. */
export const TEXT = "typed text";

/** What stands for a figure that there is not. */
const NOTHING = "–";
/** The element shows its picture at most this many times its size; the layout leaves no more room for it. */
const MAX_SCALE = 2;
/** How often the level is told to screen readers; the bar itself moves with every reading. */
const SPOKEN_LEVEL_MS = 1_000;

/** Events: "voice", "avatar" and "playback" (a choice was made). */
export class UserInterface extends EventTarget {
  /** @type {HTMLElement} */ #level = element("level");
  /** @type {HTMLSelectElement} */ #voice = element("voice", HTMLSelectElement);
  /** @type {HTMLInputElement} */ #playback = element("playback", HTMLInputElement);
  /** @type {HTMLFieldSetElement} */ #avatars = element("avatar-field", HTMLFieldSetElement);
  /** Whether the server says text. */
  #saysText = false;
  #levelSpokenAt = -SPOKEN_LEVEL_MS;

  constructor() {
    super();
    this.#voice.addEventListener("change", () => this.dispatchEvent(new Event("voice")));
    this.#playback.addEventListener("change", () => this.dispatchEvent(new Event("playback")));
    this.#avatars.addEventListener("change", () => this.dispatchEvent(new Event("avatar")));
    this.showLevel(0);
  }

  get themeButton() {
    return element("theme", HTMLButtonElement);
  }

  /** The chosen microphone's id, "" for the system's choice, SAMPLE or TEXT. */
  get voice() {
    return this.#voice.value;
  }

  /** The chosen avatar; "" where there is none to choose. */
  get avatar() {
    return radios("avatar").find((radio) => radio.checked)?.value ?? "";
  }

  /** Whether visitors hear their own words from the avatar. */
  get hearsItself() {
    return this.#playback.checked;
  }

  set hearsItself(hears) {
    this.#playback.checked = hears;
  }

  /** @returns {Phase} */
  get phase() {
    return /** @type {Phase} */ (document.body.dataset.phase);
  }

  /** @param {Phase} phase */
  showPhase(phase) {
    document.body.dataset.phase = phase;
    this.#avatars.disabled = phase !== "off";
  }

  /** @param {Configuration} configuration */
  showConfiguration({ width, height, fps, engine, notices = [], speak_text: saysText }) {
    this.#saysText = saysText === true;
    document.documentElement.style.setProperty("--ratio", String(width / height));
    document.documentElement.style.setProperty("--most", `${MAX_SCALE * width}px`);
    element("picture").textContent = `${width} × ${height}, ${fps} frames a second`;
    element("notices").textContent = notices.join("\n");
    element("about").textContent = engine === "testcard" ? "Test card" : "";
    document.title = engine === "testcard" ? "Test card · echo_rtc" : "echo_rtc: give your voice a face";
  }

  /**
   * @param {Avatar[]} avatars There is no choice where there is only one.
   * @param {string} chosen The name of one of them.
   */
  showAvatars(avatars, chosen) {
    element("avatars").replaceChildren(...avatars.map((avatar) => this.#face(avatar, avatar.name === chosen)));
    this.#avatars.hidden = avatars.length < 2;
  }

  /**
   * @param {Device[]} devices
   * @param {string} chosen The id of the one that is wanted, "", SAMPLE or TEXT.
   */
  showVoices(devices, chosen) {
    const options = devices.map(({ id, label }) => new Option(label, id));
    const sample = new Option("Sample voice, without a microphone", SAMPLE);
    const text = this.#saysText ? [new Option("Typed text, in the server's voice", TEXT)] : [];
    this.#voice.replaceChildren(new Option("Default microphone", ""), ...options, sample, ...text);
    this.#voice.value = chosen;
    if (this.#voice.selectedIndex < 0) {
      this.#voice.value = "";
    }
    for (const place of document.querySelectorAll("[data-voice=own]")) {
      /** @type {HTMLElement} */ (place).hidden = this.voice === TEXT;
    }
  }

  /** @param {number} level 0..1 */
  showLevel(level) {
    this.#level.style.setProperty("--level", level.toFixed(3));
    const now = performance.now();
    if (now - this.#levelSpokenAt >= SPOKEN_LEVEL_MS || level === 0) {
      this.#levelSpokenAt = now;
      this.#level.setAttribute("aria-valuenow", String(Math.round(level * 100)));
      this.#level.setAttribute("aria-valuetext", loudnessOf(level));
    }
  }

  /**
   * @param {StreamStatistics | null} stream
   * @param {LinkFigures | null} link
   */
  showFigures(stream, link) {
    const hasFigures = stream !== null || link !== null;
    element("figures-list").hidden = !hasFigures;
    element("no-figures").hidden = hasFigures;
    figure("delay", stream && `${(stream.delay_ms / 1000).toFixed(2)} s`);
    figure("held", stream && stream.held.toLocaleString("en"));
    figure("steps", stream && String(stream.steps));
    figure("fps", valueOf(link?.fps, (fps) => fps.toFixed(0)));
    figure("rate", valueOf(link?.kbps, rateOf));
    figure("roundTrip", valueOf(link?.roundTripMs, (ms) => `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`));
    figure("loss", valueOf(link?.lossPercent, (percent) => `${percent.toFixed(1)} %`));
    figure("codec", link?.codec ?? null);
    figure("size", link?.size ?? null);
  }

  /**
   * @param {Avatar} avatar
   * @param {boolean} checked
   */
  #face({ name, preview }, checked) {
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "avatar", value: name, checked });
    const words = Object.assign(document.createElement("span"), { textContent: titleOf(name), title: name });
    const label = document.createElement("label");
    label.append(radio, Object.assign(document.createElement("img"), { src: preview, alt: "" }), words);
    return label;
  }
}

/**
 * An avatar's name as people write names.
 * @param {string} name For example "anna_maria".
 * @returns {string} For example "Anna Maria".
 */
export function titleOf(name) {
  return name.replace(/[_-]+/g, " ").trim().replace(/(?<!\S)\p{L}/gu, (letter) => letter.toUpperCase()) || name;
}

/** @param {number} level 0..1 */
function loudnessOf(level) {
  return (
    level < 0.1 ? "silent"
    : level < 0.4 ? "quiet"
    : level < 0.9 ? "good"
    : "loud"
  );
}

/** @param {number} kbps */
function rateOf(kbps) {
  return kbps >= 1000 ? `${(kbps / 1000).toFixed(1)} Mbit/s` : `${kbps.toFixed(0)} kbit/s`;
}

/**
 * @param {number | null | undefined} value
 * @param {(value: number) => string} format
 */
function valueOf(value, format) {
  return typeof value === "number" ? format(value) : null;
}

/**
 * @param {string} name
 * @param {string | null} text
 */
function figure(name, text) {
  const place = document.querySelector(`[data-figure="${name}"]`);
  if (place !== null) {
    place.textContent = text ?? NOTHING;
  }
}

/**
 * @param {"avatar"} name
 * @returns {HTMLInputElement[]}
 */
function radios(name) {
  return [...document.querySelectorAll(`input[name=${name}]`)].filter((input) => input instanceof HTMLInputElement);
}

/**
 * The element with this id, which the page must have.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @param {new () => T} [type]
 * @returns {T}
 */
function element(id, type) {
  const found = document.getElementById(id);
  if (found === null || (type !== undefined && !(found instanceof type))) {
    throw new Error(`the page has no ${type?.name ?? "element"} #${id}`);
  }
  return /** @type {T} */ (found);
}
