/**
 * What stands around the element on the page: shows what it is told, and tells what the visitor chooses.
 *
 * Holds no call, no microphone and no decision. Every text comes from outside, and is only ever set as text.
 */

/** @import { StreamStatistics } from "../element/connection.js" */
/** @import { LinkFigures } from "../element/figures.js" */
/** @import { Avatar, Configuration } from "../element/server.js" */
/** @import { Source } from "../element/words.js" */
/** @import { Device } from "./devices.js" */

/** @typedef {"off" | "calling" | "live"} Phase No call, a call without a picture (yet, or for now), one with it. */

const NOTHING = "–";
/** How often the level is told to screen readers; the bar itself moves with every frame of the screen. */
const SPOKEN_LEVEL_MS = 1_000;

/** Events: "source", "device" and "avatar" (a choice was made), "token" (one was given). */
export class UserInterface extends EventTarget {
  /** @type {HTMLElement} */ #level = element("level");
  /** @type {HTMLSelectElement} */ #device = element("device", HTMLSelectElement);
  /** @type {HTMLFieldSetElement} */ #avatars = element("avatar-field", HTMLFieldSetElement);
  /** @type {HTMLFormElement} */ #permission = element("permission", HTMLFormElement);
  /** @type {HTMLInputElement} */ #token = element("token", HTMLInputElement);
  #levelSpokenAt = 0;

  constructor() {
    super();
    this.#device.addEventListener("change", () => this.dispatchEvent(new Event("device")));
    this.#avatars.addEventListener("change", () => this.dispatchEvent(new Event("avatar")));
    for (const radio of radios("source")) {
      radio.addEventListener("change", () => this.dispatchEvent(new Event("source")));
    }
    this.#permission.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#permission.hidden = true;
      this.dispatchEvent(new Event("token"));
    });
    // On phones, below everything else, the figures wait until somebody wants them.
    element("figures", HTMLDetailsElement).open = matchMedia("(min-width: 40rem)").matches;
  }

  get themeButton() {
    return element("theme", HTMLButtonElement);
  }

  /** @returns {Source} */
  get source() {
    return radios("source").some((radio) => radio.checked && radio.value === "sample") ? "sample" : "microphone";
  }

  /** @param {Source} source */
  set source(source) {
    for (const radio of radios("source")) {
      radio.checked = radio.value === source;
    }
    element("device-field").hidden = source === "sample";
  }

  /** The chosen microphone's id; "" for the system's choice. */
  get device() {
    return this.#device.value;
  }

  /** The chosen avatar; "" where there is none to choose. */
  get avatar() {
    return radios("avatar").find((radio) => radio.checked)?.value ?? "";
  }

  /** The token that was given. */
  get token() {
    return this.#token.value.trim();
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
  showConfiguration({ width, height, fps, engine }) {
    document.documentElement.style.setProperty("--ratio", String(width / height));
    const size = `${width} × ${height}, ${fps} frames a second`;
    element("about").textContent = engine === "testcard" ? `Test card · ${size}` : size;
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

  /** Asks for a token. */
  askForToken() {
    this.#permission.hidden = false;
    this.#token.focus();
  }

  /**
   * @param {Device[]} devices
   * @param {string} chosen The id of the one that is wanted, or "".
   */
  showDevices(devices, chosen) {
    const options = devices.map(({ id, label }) => new Option(label, id));
    this.#device.replaceChildren(new Option("Default microphone", ""), ...options);
    this.#device.value = devices.some(({ id }) => id === chosen) ? chosen : "";
  }

  /** @param {number} level 0..1 */
  showLevel(level) {
    this.#level.style.setProperty("--level", level.toFixed(3));
    const now = performance.now();
    if (now - this.#levelSpokenAt >= SPOKEN_LEVEL_MS) {
      this.#levelSpokenAt = now;
      this.#level.setAttribute("aria-valuenow", String(Math.round(level * 100)));
    }
  }

  /** @param {StreamStatistics | null} statistics */
  showStream(statistics) {
    figure("delay", statistics && `${(statistics.delay_ms / 1000).toFixed(2)} s`);
    figure("held", statistics && statistics.held.toLocaleString("en"));
    figure("steps", statistics && String(statistics.steps));
  }

  /** @param {LinkFigures | null} figures */
  showLink(figures) {
    figure("fps", valueOf(figures?.fps, (fps) => fps.toFixed(0)));
    figure("rate", valueOf(figures?.kbps, rateOf));
    figure("roundTrip", valueOf(figures?.roundTripMs, (ms) => `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`));
    figure("loss", valueOf(figures?.lossPercent, (percent) => `${percent.toFixed(1)} %`));
    figure("codec", figures?.codec ?? null);
    figure("size", figures?.size ?? null);
  }

  /**
   * @param {Avatar} avatar
   * @param {boolean} checked
   */
  #face({ name, preview }, checked) {
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "avatar", value: name, checked });
    const words = Object.assign(document.createElement("span"), { textContent: name, title: name });
    const label = document.createElement("label");
    label.append(radio, Object.assign(document.createElement("img"), { src: preview, alt: "" }), words);
    return label;
  }
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
 * @param {"source" | "avatar"} name
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
