/**
 * The stage, the words over it and the controls below it: shows what it is told, and reports what the visitor does.
 */

import { control, draw, element, icon } from "./dom.js";
import { SayForm } from "./say.js";
import { STYLE } from "./styles.js";
import { MARK, stateWords } from "./words.js";

/** @import { Action, Mode, Notice, ShownState } from "./words.js" */

/** @typedef {"off" | "calling" | "live"} Phase No call, a call without a picture (yet, or for now), one with it. */

/** A picture is shown at most this many times its size: more would only show that it is small. */
const MAX_SCALE = 2;

/** @type {CSSStyleSheet | undefined} STYLE, made once for all elements of a page. */
let sheet;

/**
 * Events: "action" (CustomEvent with the ActionName of a notice's button, or "stop" of the call's own), "mute",
 * "silence" and "unmute" (a button was pressed), "volume" (the slider was moved), "token" (CustomEvent with the token
 * that was given).
 */
export class View extends EventTarget {
  /** @type {ShadowRoot} */ #root;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #countdownTimer;
  #actionsKey = "";
  /** Whether a control that had the focus was hidden, so that the stage or the next notice takes it over. */
  #focusLost = false;

  #video = element("video", { part: "video", playsinline: "", "aria-label": "The avatar, speaking" });
  #poster = element("img", { part: "poster", class: "poster", alt: "", hidden: "" });
  #noticeIcon = icon("mark");
  #title = element("h2", { part: "title", class: "title" });
  #text = element("p", { part: "text", class: "text" });
  #countdown = element("p", { part: "countdown", class: "countdown", hidden: "" });
  #token = element("input", { part: "token", class: "token", type: "password", autocomplete: "off", required: "" });
  #tokenField = element("label", { class: "field", hidden: "" }, element("span", {}, "Token"), this.#token);
  #actions = element("div", { class: "actions" });
  #hint = element("p", { part: "hint", class: "hint", hidden: "" });
  #notice = element(
    "form",
    { part: "notice", class: "notice", "data-tone": "calm" },
    element("span", { part: "emblem", class: "emblem" }, this.#noticeIcon),
    this.#title,
    this.#text,
    this.#countdown,
    this.#tokenField,
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
  // No part: a page's styles cannot hide it.
  #recording = element(
    "p",
    { class: "chip recording", hidden: "" },
    element("span", { class: "dot", "aria-hidden": "true" }),
    element("span", {}, "Recording"),
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
  #bannerText = element("span", {});
  #banner = element("p", { part: "banner", class: "banner", hidden: "" }, icon("mic-off"), this.#bannerText);
  #captionText = element("p", { part: "caption-text", class: "caption-text", dir: "auto", hidden: "" });
  /** Without a part, so that no page's style reaches it. */
  #mark = element("p", { class: "mark" }, MARK);
  #isMarked = true;
  #stage = element(
    "section",
    { part: "stage", class: "stage", "aria-label": "Avatar", tabindex: "-1", "data-phase": "off" },
    this.#video,
    this.#poster,
    this.#overlay,
    this.#chip,
    this.#recording,
    this.#clock,
    this.#unmute,
    this.#banner,
    this.#captionText,
    this.#mark, // the last, so that it lies over all else
  );
  #muteIcon = icon("mic");
  #muteWord = element("span", {}, "Mute");
  #mute = control("Mute or unmute your voice", "M", this.#muteIcon, this.#muteWord);
  #silenceIcon = icon("sound");
  #silence = control("Sound off", "S", this.#silenceIcon, element("span", {}, "Sound"));
  #slider = element("input", { type: "range", min: "0", max: "100", step: "5", value: "100" });
  #volume = element("label", { part: "volume", class: "volume" }, element("span", {}, "Volume"), this.#slider);
  #end = control("End the call", "Escape", icon("phone-end"), element("span", {}, "End"));
  #say = new SayForm();
  #controls = element(
    "div",
    { part: "controls", class: "controls", role: "group", "aria-label": "Call controls", hidden: "" },
    this.#mute,
    this.#silence,
    this.#volume,
    this.#say.interrupt,
    this.#end,
  );
  #hasControls = false;
  /** @type {Mode} */ #mode = "call";
  /** Whether the server says text. */
  #saysText = false;
  /** Whether what is said can be interrupted from here. */
  #isOwner = false;
  #hasCaptions = false;
  #caption = element("p", { part: "caption", class: "caption", hidden: "" });
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
    this.#video.disablePictureInPicture = true;
    const frame = element("div", { class: "frame" }, this.#stage, this.#controls, this.#caption, this.#say.form);
    root.append(frame, this.#status, this.#alert);
    this.#end.addEventListener("click", () => this.#emit("action", "stop"));
    this.#mute.addEventListener("click", () => this.#emit("mute"));
    this.#silence.addEventListener("click", () => this.#emit("silence"));
    this.#unmute.addEventListener("click", () => this.#emit("unmute"));
    this.#slider.addEventListener("input", () => this.#emit("volume"));
    this.#poster.addEventListener("error", () => this.showPoster(""));
    this.#notice.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#emit("token", this.#token.value.trim());
      this.#token.value = "";
    });
  }

  get video() {
    return this.#video;
  }

  /** The field for text and the button that interrupts it. */
  get say() {
    return this.#say;
  }

  /** The echo's volume, 0..1. */
  get volume() {
    return this.#slider.valueAsNumber / 100;
  }

  /** @param {number} width Of the picture, in pixels. @param {number} height */
  showSize(width, height) {
    this.#stage.style.setProperty("--ratio", String(width / height));
    this.#stage.style.setProperty("--most-width", `${MAX_SCALE * width}px`);
    this.#stage.style.setProperty("--most-height", `${MAX_SCALE * height}px`);
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
    this.#arrangeMark();
  }

  /**
   * Which of the controls there are.
   * @param {boolean} shown
   * @param {Mode} mode
   */
  showControls(shown, mode) {
    this.#hasControls = shown;
    this.#mode = mode;
    this.#chip.hidden = !shown;
    this.#mute.hidden = mode !== "call";
    const label = mode === "view" ? "End: stop watching" : "End the call";
    this.#end.setAttribute("aria-label", label);
    this.#end.title = `${label} (Escape)`;
    this.#arrange();
  }

  /** @param {boolean} saysText Whether the server says text. */
  showText(saysText) {
    this.#saysText = saysText;
    this.#arrange();
  }

  /**
   * Progress of pushed speech, for the stream's owner.
   * @param {boolean} isOwner
   * @param {boolean} isSaying Whether anything is being said, or waits for it.
   */
  showSaying(isOwner, isSaying) {
    this.#isOwner = isOwner;
    this.#say.showSaying(isSaying);
    this.#arrange();
  }

  /** @param {boolean} isMarked Whether it says over the picture that this is AI-generated. */
  showMark(isMarked) {
    this.#isMarked = isMarked;
    this.#arrangeMark();
  }

  /**
   * What the element is in the middle of.
   * @param {Phase} phase
   */
  showPhase(phase) {
    this.#stage.dataset.phase = phase;
    this.#poster.hidden = phase === "live" || !this.#poster.hasAttribute("src");
    this.#arrange();
    if (phase === "live") {
      this.hideNotice();
    }
  }

  /** @param {ShownState} state Its word is shown while there is no notice, which knows more. */
  showState(state) {
    const { word, caption } = stateWords(state, this.#mode === "text");
    this.#chip.dataset.state = state;
    this.#stage.dataset.state = state;
    this.#caption.textContent = caption;
    if (this.#overlay.hidden) {
      this.#state.textContent = word;
    }
  }

  /** @param {boolean} active Whether the server records what is said and shown. */
  showRecording(active) {
    this.#recording.hidden = !active;
  }

  /**
   * The visitor's own voice, as a ring around the stage.
   * @param {number} level 0..1
   */
  showLevel(level) {
    this.#stage.style.setProperty("--level", level.toFixed(2));
  }

  /**
   * Lays words over the stage.
   * @param {Notice} notice
   * @param {number} [untilMs] A countdown runs to this `performance.now()`.
   */
  showNotice(notice, untilMs) {
    const { activeElement } = this.#root;
    const hadFocus = this.#overlay.contains(activeElement) || activeElement === this.#stage || this.#focusLost;
    this.#notice.dataset.tone = notice.tone;
    this.#chip.dataset.tone = notice.tone;
    this.#state.textContent = notice.chip;
    draw(this.#noticeIcon, notice.icon);
    this.#title.textContent = notice.title;
    this.#text.textContent = notice.text;
    this.#hint.textContent = notice.hint ?? "";
    this.#hint.hidden = notice.hint === undefined;
    this.#tokenField.hidden = this.#token.disabled = notice.asksToken !== true;
    const hasNewActions = this.#showActions(notice);
    this.#count(untilMs);
    this.#overlay.hidden = false;
    this.#focusLost = false;
    if (hadFocus && hasNewActions) {
      this.#focusOn(notice);
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
    delete this.#chip.dataset.tone;
    if (hadFocus) {
      this.#stage.focus();
    }
  }

  /**
   * @param {string} text A short line over the picture; "" for none.
   * @param {boolean} [isMuted] Whether it says that the visitor is muted.
   */
  showBanner(text, isMuted = false) {
    this.#bannerText.textContent = text;
    this.#banner.hidden = text === "";
    this.#banner.classList.toggle("muted", isMuted);
  }

  /**
   * @param {string | null} live How screen readers say captions, as aria-live has it; null where none are shown.
   */
  showCaptions(live) {
    this.#captionText.setAttribute("aria-live", live === "polite" || live === "assertive" ? live : "off");
    this.#captionText.hidden = live === null || this.#captionText.textContent === "";
    this.#hasCaptions = live !== null;
  }

  /** @param {string} text The words that are being said; "" for none. */
  showCaption(text) {
    this.#captionText.textContent = text;
    this.#captionText.hidden = !this.#hasCaptions || text === "";
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
    this.#muteWord.textContent = muted ? "Unmute" : "Mute";
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
    this.#slider.setAttribute("aria-valuetext", `${this.#slider.value} %`);
    this.#slider.style.setProperty("--filled", `${this.#slider.value}%`);
  }

  /** @param {number | null} seconds The call's length; null without a call. */
  showClock(seconds) {
    this.#clock.hidden = seconds === null || !this.#hasControls;
    if (seconds !== null) {
      this.#time.textContent = durationOf(seconds);
    }
  }

  /** The mark belongs to a picture, moving or still. */
  #arrangeMark() {
    this.#mark.hidden = !this.#isMarked || (this.#poster.hidden && this.#stage.dataset.phase !== "live");
  }

  /** The bar and the line below belong to a running picture. */
  #arrange() {
    this.#arrangeMark();
    const isLive = this.#stage.dataset.phase === "live";
    const { activeElement } = this.#root;
    const hadFocus = this.#controls.contains(activeElement) || this.#say.form.contains(activeElement);
    const isText = this.#mode === "text";
    this.#focusLost ||= !isLive && hadFocus;
    this.#controls.hidden = !this.#hasControls || !isLive;
    this.#caption.hidden = this.#controls.hidden || this.#mode === "view";
    this.#say.arrange(!this.#controls.hidden && isText && this.#saysText, isText || this.#isOwner);
  }

  /**
   * Moves the keyboard's focus to the first action of an error. Otherwise the focus goes to the stage: a key that was
   * meant for the button before must neither cancel what is under way nor start what has just ended.
   * @param {Notice} notice
   */
  #focusOn(notice) {
    const [first] = notice.actions;
    const isWayOut = notice.tone === "warning" && first?.name !== "stop";
    const button = isWayOut ? this.#actions.querySelector("button") : null;
    (notice.asksToken ? this.#token : (button ?? this.#stage)).focus();
  }

  /**
   * @param {Notice} notice
   * @returns {boolean} Whether there are other buttons now. The same ones are left alone, and so is the focus on them.
   */
  #showActions({ actions, asksToken }) {
    const key = JSON.stringify([actions, asksToken]);
    if (key === this.#actionsKey) {
      return this.#focusLost;
    }
    this.#actionsKey = key;
    this.#actions.replaceChildren(
      ...actions.map((action, index) => this.#button(action, index === 0, index === 0 && asksToken === true)),
    );
    this.#actions.hidden = actions.length === 0;
    return true;
  }

  /**
   * @param {Action} action
   * @param {boolean} first
   * @param {boolean} submits Whether it gives the token, which then starts by itself.
   */
  #button({ name, label }, first, submits) {
    const leads = first && name !== "stop";
    const part = leads ? "action first-action" : "action";
    const type = submits ? "submit" : "button";
    const button = element("button", { part, class: leads ? "action first" : "action", type }, label);
    button.dataset.action = name;
    if (name === "stop") {
      button.setAttribute("aria-keyshortcuts", "Escape");
    }
    if (!submits) {
      button.addEventListener("click", () => this.#emit("action", name));
    }
    return button;
  }

  /** @param {number | undefined} untilMs */
  #count(untilMs) {
    clearInterval(this.#countdownTimer);
    this.#countdown.hidden = untilMs === undefined;
    if (untilMs !== undefined) {
      const show = () => {
        const seconds = Math.max(0, Math.ceil((untilMs - performance.now()) / 1000));
        this.#countdown.textContent = seconds === 0 ? "Trying now" : `Trying again in ${seconds} s`;
      };
      this.#countdownTimer = setInterval(show, 250);
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
