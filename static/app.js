/**
 * The page: an <echo-rtc> element, and around it what a visitor may set and read.
 *
 * The element holds the call. Here the choices are kept for the next visit, and its events are shown.
 */

import "../echo-rtc.js";
import { microphones, onDevicesChanged } from "./devices.js";
import { recall, remember } from "./preferences.js";
import { bindThemeButton } from "./theme.js";
import { SAMPLE, TEXT, UserInterface } from "./ui.js";

/** @import { CallState } from "../element/call.js" */
/** @import { StreamStatistics } from "../element/connection.js" */
/** @import { EchoRtc } from "../element/element.js" */
/** @import { LinkFigures } from "../element/figures.js" */
/** @import { Avatar, Configuration } from "../element/server.js" */
/** @import { Source } from "../element/words.js" */

class App {
  /** @type {EchoRtc} */ #echo;
  #ui = new UserInterface();
  /** @type {Source} */ #source = "microphone";

  /** @param {EchoRtc} echo */
  constructor(echo) {
    this.#echo = echo;
  }

  /** Shows the page and waits for the visitor. */
  run() {
    bindThemeButton(this.#ui.themeButton);
    this.#recall();
    this.#followElement();
    this.#followVisitor();
    onDevicesChanged(() => this.#showVoices());
    this.#showVoices();
  }

  /** Applies what was chosen before. */
  #recall() {
    const echo = this.#echo;
    const token = tokenOfAddress() ?? recall("token", true);
    if (token !== null) {
      remember("token", token, true);
      echo.setAttribute("token", token);
    }
    echo.setMicrophone(recall("device") ?? "");
    echo.volume = Number(recall("volume") ?? 1);
    echo.muted ||= recall("playback") === "off";
    this.#ui.hearsItself = !echo.muted;
  }

  #followElement() {
    const echo = this.#echo;
    const ui = this.#ui;
    const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ handle) =>
      echo.addEventListener(name, (event) => handle(/** @type {CustomEvent} */ (event).detail));
    echo.addEventListener("volumechange", () => {
      if (echo.volume > 0) {
        remember("volume", String(echo.volume));
      }
      ui.hearsItself = !echo.muted;
    });
    echo.addEventListener("playing", () => ui.showPhase("live"));
    on("configuration", (/** @type {Configuration} */ configuration) => {
      ui.showConfiguration(configuration);
      this.#showVoices();
    });
    on("avatars", (/** @type {Avatar[]} */ avatars) => {
      const kept = recall("avatar");
      const chosen = avatars.find(({ name }) => name === kept) ?? avatars[0];
      ui.showAvatars(avatars, chosen?.name ?? "");
      echo.setAttribute("avatar", chosen?.name ?? "");
    });
    on("token", (/** @type {{ token: string }} */ { token }) => remember("token", token, true));
    on("state", (/** @type {{ state: CallState }} */ { state }) => this.#onState(state));
    on("stats", (/** @type {{ stream: StreamStatistics, link: LinkFigures }} */ { stream, link }) => {
      ui.showFigures(stream, link);
    });
    on("level", (/** @type {{ level: number }} */ { level }) => ui.showLevel(level));
    on("voice", (/** @type {{ source: Source }} */ { source }) => {
      this.#source = source;
      this.#showVoices();
    });
  }

  #followVisitor() {
    const echo = this.#echo;
    const ui = this.#ui;
    ui.addEventListener("voice", () => {
      const { voice } = ui;
      if (voice === SAMPLE) {
        echo.useSample();
      } else if (voice !== TEXT) {
        remember("device", voice);
        echo.setMicrophone(voice);
      }
      this.#changeTo(voice === TEXT ? "text" : "call");
    });
    ui.addEventListener("avatar", () => {
      remember("avatar", ui.avatar);
      echo.setAttribute("avatar", ui.avatar);
    });
    ui.addEventListener("playback", () => {
      remember("playback", ui.hearsItself ? "on" : "off");
      echo.muted = !ui.hearsItself;
    });
  }

  /** @param {CallState} state */
  #onState(state) {
    if (state === "new" || state === "closed" || state === "waiting") {
      this.#ui.showFigures(null, null);
      this.#ui.showPhase(state === "waiting" ? "calling" : "off");
    } else if (state === "connecting" && this.#ui.phase === "off") {
      this.#ui.showPhase("calling");
    }
  }

  /**
   * Changes between a voice and text. A call with the one cannot go on with the other, so another one begins.
   * @param {"call" | "text"} mode
   */
  #changeTo(mode) {
    const echo = this.#echo;
    if (this.#isText !== (mode === "text")) {
      const wasUp = this.#ui.phase !== "off";
      echo.stop();
      echo.setAttribute("mode", mode);
      if (wasUp) {
        echo.start();
      }
      this.#showVoices();
    }
  }

  get #isText() {
    return this.#echo.getAttribute("mode") === "text";
  }

  async #showVoices() {
    const devices = await microphones();
    const chosen =
      this.#isText ? TEXT
      : this.#source === "sample" ? SAMPLE
      : (recall("device") ?? "");
    this.#ui.showVoices(devices, chosen);
  }
}

/**
 * The token in /#token=..., which is taken out of the address bar: addresses are copied and shown about.
 * @returns {string | null}
 */
function tokenOfAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) {
    history.replaceState(null, "", location.pathname + location.search);
  }
  return token;
}

const echo = /** @type {EchoRtc} */ (document.querySelector("echo-rtc"));
new App(echo).run();
