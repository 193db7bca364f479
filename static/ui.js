/**
 * The page's elements: shows what it is told, and tells what the visitor does.
 *
 * Holds no call, no microphone and no decision. Every text comes from outside, and is only ever set as text.
 */

import { stateWords } from "./words.js";

/** @import { CallState } from "./call.js" */
/** @import { StreamStatistics } from "./connection.js" */
/** @import { Device } from "./microphone.js" */
/** @import { LinkFigures } from "./stats.js" */
/** @import { Action, Notice } from "./words.js" */

/** @typedef {"microphone" | "sample"} Source */

const NOTHING = "–";
/** How often the level is told to screen readers; the bar itself moves with every frame of the screen. */
const SPOKEN_LEVEL_MS = 1_000;

/**
 * Events: "action" (CustomEvent with the ActionName of a notice's button, or "stop" of the call's own), "mute" and
 * "silence" (a button was pressed), "volume" (the slider was moved), "source" and "device" (a choice was made).
 */
export class UserInterface extends EventTarget {
  /** @type {HTMLVideoElement} */ #video = element("avatar", HTMLVideoElement);
  /** @type {HTMLElement} */ #overlay = element("overlay");
  /** @type {HTMLElement} */ #actions = element("notice-actions");
  /** @type {HTMLElement} */ #countdown = element("notice-countdown");
  /** @type {HTMLElement} */ #banner = element("banner");
  /** @type {HTMLElement} */ #level = element("level");
  /** @type {HTMLButtonElement} */ #mute = element("mute", HTMLButtonElement);
  /** @type {HTMLButtonElement} */ #silence = element("silence", HTMLButtonElement);
  /** @type {HTMLButtonElement} */ #end = element("end", HTMLButtonElement);
  /** @type {HTMLInputElement} */ #volume = element("volume", HTMLInputElement);
  /** @type {HTMLSelectElement} */ #device = element("device", HTMLSelectElement);
  /** @type {HTMLSelectElement} */ #avatars = element("avatars", HTMLSelectElement);
  /** @type {ReturnType<typeof setInterval> | undefined} */ #counting;
  #actionsKey = "";
  #levelSpokenAt = 0;
  /** Whether a button that had the focus was hidden, so that the next one to come takes it over. */
  #focusFell = false;

  constructor() {
    super();
    this.#end.addEventListener("click", () => this.#emit("action", "stop"));
    this.#mute.addEventListener("click", () => this.#emit("mute"));
    this.#silence.addEventListener("click", () => this.#emit("silence"));
    this.#volume.addEventListener("input", () => this.#emit("volume"));
    this.#device.addEventListener("change", () => this.#emit("device"));
    for (const radio of radios()) {
      radio.addEventListener("change", () => this.#emit("source"));
    }
    // On phones, below everything else, the figures wait until somebody wants them.
    element("figures", HTMLDetailsElement).open = matchMedia("(min-width: 40rem)").matches;
  }

  get video() {
    return this.#video;
  }

  get themeButton() {
    return element("theme", HTMLButtonElement);
  }

  /** @returns {Source} */
  get source() {
    return radios().some((radio) => radio.checked && radio.value === "sample") ? "sample" : "microphone";
  }

  /** @param {Source} source */
  set source(source) {
    for (const radio of radios()) {
      radio.checked = radio.value === source;
    }
    element("device-field").hidden = source === "sample";
  }

  /** The chosen microphone's id; "" for the system's choice. */
  get device() {
    return this.#device.value;
  }

  /** The echo's volume, 0..1. */
  get volume() {
    return this.#volume.valueAsNumber / 100;
  }

  set volume(volume) {
    this.#volume.valueAsNumber = Math.round(volume * 100);
    this.#volume.style.setProperty("--filled", `${this.#volume.value}%`);
  }

  /** The chosen avatar; null where there is none to choose. */
  get avatar() {
    return this.#avatars.value === "" ? null : this.#avatars.value;
  }

  /**
   * @param {{ width: number, height: number, fps: number, avatars: string[], engine: string }} configuration
   */
  showConfiguration({ width, height, fps, avatars, engine }) {
    document.documentElement.style.setProperty("--ratio", String(width / height));
    const name = engine === "testcard" ? "Test card" : avatars.length === 1 ? "" : `${avatars.length} avatars`;
    const size = `${width} × ${height}, ${fps} frames a second`;
    element("about").textContent = name === "" || avatars.length === 0 ? size : `${name} · ${size}`;
    document.title = engine === "testcard" ? "Test card · echo_rtc" : "echo_rtc: give your voice a face";
    this.#avatars.replaceChildren(...avatars.map((avatar) => new Option(avatar, avatar)));
    element("avatar-field").hidden = avatars.length < 2;
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

  /**
   * What the page is in the middle of: no call, a call without a picture (yet, or for now), a call with one.
   * @param {"off" | "calling" | "live"} phase
   */
  showPhase(phase) {
    document.body.dataset.phase = phase;
    const inCall = phase !== "off";
    this.#focusFell ||= !inCall && document.activeElement === this.#end;
    this.#end.hidden = !inCall;
    this.#avatars.disabled = inCall;
    if (phase === "live") {
      this.hideNotice();
    }
  }

  /** @param {CallState} state */
  showState(state) {
    const { word, caption } = stateWords(state);
    element("chip").dataset.state = state;
    element("state").textContent = word;
    element("caption").textContent = caption;
  }

  /**
   * Lays words over the stage.
   * @param {Notice} notice
   * @param {number} [untilMs] A countdown runs to this `performance.now()`.
   */
  showNotice(notice, untilMs) {
    const hadFocus = this.#overlay.contains(document.activeElement) || this.#focusFell;
    element("notice").dataset.tone = notice.tone;
    element("notice-icon").setAttribute("href", `#i-${notice.icon}`);
    element("notice-title").textContent = notice.title;
    element("notice-text").textContent = notice.text;
    element("notice-hint").textContent = notice.hint ?? "";
    element("notice-hint").hidden = notice.hint === undefined;
    const hasNewActions = this.#showActions(notice.actions);
    this.#count(untilMs);
    this.#overlay.hidden = false;
    this.#focusFell = false;
    if (hadFocus && hasNewActions) {
      // Whoever uses the keyboard goes on where the button was that is gone now.
      (this.#actions.querySelector("button") ?? element("stage")).focus();
    }
  }

  /** The countdown's attempt has begun. */
  showAttempt() {
    if (!this.#countdown.hidden) {
      this.#count(performance.now());
    }
  }

  hideNotice() {
    const hadFocus = this.#overlay.contains(document.activeElement);
    this.#count(undefined);
    this.#overlay.hidden = true;
    if (hadFocus) {
      (this.#end.hidden ? element("stage") : this.#end).focus();
    }
  }

  /** @param {string} text A short line over the picture; "" for none. */
  showBanner(text) {
    this.#banner.textContent = text;
    this.#banner.hidden = text === "";
  }

  /**
   * Tells a screen reader, but nothing twice in a row.
   * @param {string} text
   * @param {boolean} [urgent]
   */
  announce(text, urgent = false) {
    const place = element(urgent ? "alert" : "status");
    if (place.textContent !== text) {
      place.textContent = text;
    }
  }

  /** @param {boolean} muted Whether the visitor's voice is kept back. */
  showMuted(muted) {
    this.#mute.setAttribute("aria-pressed", String(muted));
    element("mute-icon").setAttribute("href", muted ? "#i-mic-off" : "#i-mic");
  }

  /** @param {boolean} silent Whether the echo is silenced. */
  showSilent(silent) {
    this.#silence.setAttribute("aria-pressed", String(silent));
    element("silence-icon").setAttribute("href", silent ? "#i-sound-off" : "#i-sound");
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

  /** @param {number | null} seconds The call's length; null without a call. */
  showClock(seconds) {
    element("clock").hidden = seconds === null;
    if (seconds !== null) {
      element("time").textContent = durationOf(seconds);
    }
  }

  /** @param {StreamStatistics | null} statistics */
  showStream(statistics) {
    figure("delay", statistics && `${(statistics.delay_ms / 1000).toFixed(2)} s`);
    figure("held", statistics && count(statistics.held));
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
   * @param {Action[]} actions
   * @returns {boolean} Whether there are other buttons now. The same ones are left alone, and so is the focus on them.
   */
  #showActions(actions) {
    const key = JSON.stringify(actions);
    if (key === this.#actionsKey) {
      return this.#focusFell;
    }
    this.#actionsKey = key;
    this.#actions.replaceChildren(...actions.map((action, index) => this.#button(action, index === 0)));
    this.#actions.hidden = actions.length === 0;
    return true;
  }

  /**
   * @param {Action} action
   * @param {boolean} first
   */
  #button({ name, label }, first) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = first && name !== "stop" ? "action first" : "action";
    button.dataset.action = name;
    button.textContent = label;
    button.addEventListener("click", () => this.#emit("action", name));
    return button;
  }

  /** @param {number | undefined} untilMs */
  #count(untilMs) {
    clearInterval(this.#counting);
    this.#countdown.hidden = untilMs === undefined;
    if (untilMs !== undefined) {
      const show = () => {
        const seconds = Math.max(0, Math.ceil((untilMs - performance.now()) / 1000));
        this.#countdown.textContent = seconds === 0 ? "Trying now" : `Trying again in ${seconds} s`;
      };
      this.#counting = setInterval(show, 250);
      show();
    }
  }

  /**
   * @param {string} name
   * @param {unknown} [detail]
   */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/**
 * @param {number} seconds
 * @returns {string} "0:07", "12:34", "1:02:03"
 */
export function durationOf(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  const shown = parts[0] === 0 ? parts.slice(1) : parts;
  return shown.map((part, index) => (index === 0 ? String(part) : String(part).padStart(2, "0"))).join(":");
}

/** @param {number} kbps */
function rateOf(kbps) {
  return kbps >= 1000 ? `${(kbps / 1000).toFixed(1)} Mbit/s` : `${kbps.toFixed(0)} kbit/s`;
}

/** @param {number} value */
function count(value) {
  return value.toLocaleString("en");
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

/** @returns {HTMLInputElement[]} */
function radios() {
  return [...document.querySelectorAll("input[name=source]")].filter((input) => input instanceof HTMLInputElement);
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
