/**
 * The stage, the words over it and the controls below it: shows what it is told, and reports what the visitor does.
 */

import { control, draw, element, icon } from "./dom.js";
import { STYLE } from "./styles.js";
import { stateWords } from "./words.js";

/** @import { CallState } from "./call.js" */
/** @import { Action, Mode, Notice } from "./words.js" */

/** @type {CSSStyleSheet | undefined} STYLE, made once for all elements of a page. */
let sheet;

/**
 * Events: "action" (CustomEvent with the ActionName of a notice's button, or "stop" of the call's own), "mute",
 * "silence" and "unmute" (a button was pressed), "volume" (the slider was moved).
 */
export class View extends EventTarget {
  /** @type {ShadowRoot} */ #root;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #counting;
  #actionsKey = "";
  /** Whether a button that had the focus was hidden, so that the next one to come takes it over. */
  #focusFell = false;

  #video = element("video", { part: "video", playsinline: "", "aria-label": "The avatar, speaking" });
  #poster = element("img", { part: "poster", class: "poster", alt: "", hidden: "" });
  #noticeIcon = icon("mark");
  #title = element("h2", { part: "title", class: "title" });
  #text = element("p", { part: "text", class: "text" });
  #countdown = element("p", { part: "countdown", class: "countdown", hidden: "" });
  #actions = element("div", { class: "actions" });
  #hint = element("p", { part: "hint", class: "hint", hidden: "" });
  #notice = element(
    "div",
    { part: "notice", class: "notice", "data-tone": "calm" },
    element("span", { part: "emblem", class: "emblem" }, this.#noticeIcon),
    this.#title,
    this.#text,
    this.#countdown,
    this.#actions,
    this.#hint,
  );
  #overlay = element("div", { part: "overlay", class: "overlay", hidden: "" }, this.#notice);
  #state = element("span", {}, "Ready");
  #chip = element(
    "p",
    { part: "state", class: "chip", "data-state": "new" },
    element("span", { class: "dot", "aria-hidden": "true" }),
    this.#state,
  );
  #time = element("span", {}, "0:00");
  #clock = element(
    "p",
    { part: "clock", class: "chip clock", hidden: "" },
    element("span", { class: "unseen" }, "Length of the call: "),
    this.#time,
  );
  #unmute = element(
    "button",
    { part: "unmute", class: "unmute", type: "button", hidden: "" },
    icon("sound-off"),
    element("span", {}, "Tap for sound"),
  );
  #banner = element("p", { part: "banner", class: "banner", hidden: "" });
  #stage = element(
    "section",
    { part: "stage", class: "stage", "aria-label": "Avatar", tabindex: "-1", "data-phase": "off" },
    this.#video,
    this.#poster,
    this.#overlay,
    this.#chip,
    this.#clock,
    this.#unmute,
    this.#banner,
  );
  #muteIcon = icon("mic");
  #mute = control("Mute", "Mute your voice", this.#muteIcon);
  #silenceIcon = icon("sound");
  #silence = control("Sound", "Sound off", this.#silenceIcon);
  #slider = element("input", { type: "range", min: "0", max: "100", step: "5", value: "100" });
  #volume = element("label", { part: "volume", class: "volume" }, element("span", {}, "Volume"), this.#slider);
  #end = control("End", "End the call", icon("phone-end"));
  #controls = element(
    "div",
    { part: "controls", class: "controls", role: "group", "aria-label": "Call controls" },
    this.#mute,
    this.#silence,
    this.#volume,
    this.#end,
  );
  #caption = element("p", { part: "caption", class: "caption" });
  #status = element("p", { class: "unseen", role: "status" });
  #alert = element("p", { class: "unseen", role: "alert" });

  /** @param {ShadowRoot} root Empty. */
  constructor(root) {
    super();
    this.#root = root;
    if (sheet === undefined) {
      sheet = new CSSStyleSheet();
      sheet.replaceSync(STYLE);
    }
    root.adoptedStyleSheets = [sheet];
    this.#end.classList.add("hang-up");
    this.#end.hidden = true;
    root.append(this.#stage, this.#controls, this.#caption, this.#status, this.#alert);
    this.#end.addEventListener("click", () => this.#emit("action", "stop"));
    this.#mute.addEventListener("click", () => this.#emit("mute"));
    this.#silence.addEventListener("click", () => this.#emit("silence"));
    this.#unmute.addEventListener("click", () => this.#emit("unmute"));
    this.#slider.addEventListener("input", () => this.#emit("volume"));
    this.#poster.addEventListener("error", () => this.showPoster(""));
  }

  get video() {
    return this.#video;
  }

  /** The echo's volume, 0..1. */
  get volume() {
    return this.#slider.valueAsNumber / 100;
  }

  /** @param {number} ratio Of the picture's width to its height. */
  showRatio(ratio) {
    this.#stage.style.setProperty("--ratio", String(ratio));
  }

  /** @param {string} url Of an image that stands for the avatar until it moves; "" for none. */
  showPoster(url) {
    if (url === "") {
      this.#poster.removeAttribute("src");
    } else if (this.#poster.getAttribute("src") !== url) {
      this.#poster.src = url;
    }
    this.#poster.hidden = url === "" || this.#stage.dataset.phase === "live";
    this.#overlay.dataset.over = url === "" ? "nothing" : "poster";
  }

  /**
   * Which of the controls there are.
   * @param {boolean} shown
   * @param {Mode} mode
   */
  showControls(shown, mode) {
    this.#controls.hidden = !shown;
    this.#chip.hidden = !shown;
    this.#caption.hidden = !shown || mode === "view";
    this.#mute.hidden = mode === "view";
    this.#end.setAttribute("aria-label", mode === "view" ? "Stop watching" : "End the call");
    this.#end.title = this.#end.getAttribute("aria-label") ?? "";
  }

  /**
   * What the element is in the middle of: no call, a call without a picture (yet, or for now), a call with one.
   * @param {Phase} phase
   */
  showPhase(phase) {
    this.#stage.dataset.phase = phase;
    const inCall = phase !== "off";
    this.#focusFell ||= !inCall && this.#root.activeElement === this.#end;
    this.#end.hidden = !inCall;
    this.#poster.hidden = phase === "live" || !this.#poster.hasAttribute("src");
    if (phase === "live") {
      this.hideNotice();
    }
  }

  /** @param {CallState} state */
  showState(state) {
    const { word, caption } = stateWords(state);
    this.#chip.dataset.state = state;
    this.#state.textContent = word;
    this.#caption.textContent = caption;
  }

  /**
   * Lays words over the stage.
   * @param {Notice} notice
   * @param {number} [untilMs] A countdown runs to this `performance.now()`.
   */
  showNotice(notice, untilMs) {
    const hadFocus = this.#overlay.contains(this.#root.activeElement) || this.#focusFell;
    this.#notice.dataset.tone = notice.tone;
    draw(this.#noticeIcon, notice.icon);
    this.#title.textContent = notice.title;
    this.#text.textContent = notice.text;
    this.#hint.textContent = notice.hint ?? "";
    this.#hint.hidden = notice.hint === undefined;
    const hasNewActions = this.#showActions(notice.actions);
    this.#count(untilMs);
    this.#overlay.hidden = false;
    this.#focusFell = false;
    if (hadFocus && hasNewActions) {
      // Whoever uses the keyboard goes on where the button was that is gone now.
      (this.#actions.querySelector("button") ?? this.#stage).focus();
    }
  }

  /** The countdown's attempt has begun. */
  showAttempt() {
    if (!this.#countdown.hidden) {
      this.#count(performance.now());
    }
  }

  hideNotice() {
    const hadFocus = this.#overlay.contains(this.#root.activeElement);
    this.#count(undefined);
    this.#overlay.hidden = true;
    if (hadFocus) {
      (this.#end.checkVisibility() ? this.#end : this.#stage).focus();
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
    const place = urgent ? this.#alert : this.#status;
    if (place.textContent !== text) {
      place.textContent = text;
    }
  }

  /** @param {boolean} muted Whether the visitor's voice is kept back. */
  showMuted(muted) {
    this.#mute.setAttribute("aria-pressed", String(muted));
    draw(this.#muteIcon, muted ? "mic-off" : "mic");
  }

  /**
   * @param {boolean} silent Whether the avatar's sound is off.
   * @param {boolean} offered Whether a button over the picture offers it.
   */
  showSilent(silent, offered) {
    this.#silence.setAttribute("aria-pressed", String(silent));
    draw(this.#silenceIcon, silent ? "sound-off" : "sound");
    const hadFocus = this.#root.activeElement === this.#unmute;
    this.#unmute.hidden = !(silent && offered);
    if (hadFocus && this.#unmute.hidden) {
      (this.#silence.checkVisibility() ? this.#silence : this.#stage).focus();
    }
  }

  /** @param {number} volume 0..1 */
  showVolume(volume) {
    this.#slider.valueAsNumber = Math.round(volume * 100);
    this.#slider.style.setProperty("--filled", `${this.#slider.value}%`);
  }

  /** @param {number | null} seconds The call's length; null without a call. */
  showClock(seconds) {
    this.#clock.hidden = seconds === null || this.#chip.hidden;
    if (seconds !== null) {
      this.#time.textContent = durationOf(seconds);
    }
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
    const leads = first && name !== "stop";
    const part = leads ? "action first-action" : "action";
    const button = element("button", { part, class: leads ? "action first" : "action", type: "button" }, label);
    button.dataset.action = name;
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

/** @typedef {"off" | "calling" | "live"} Phase */

/**
 * @param {number} seconds
 * @returns {string} "0:07", "12:34", "1:02:03"
 */
export function durationOf(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  const shown = parts[0] === 0 ? parts.slice(1) : parts;
  return shown.map((part, index) => (index === 0 ? String(part) : String(part).padStart(2, "0"))).join(":");
}
