/**
 * The page: an <echo-rtc> element, and around it what a visitor may set and read.
 *
 * The element holds the call. Here the choices are kept for the next visit, and its events are shown.
 */

import "../echo-rtc.js";
import { microphones, onDevicesChanged } from "./devices.js";
import { LevelMeter } from "./meter.js";
import { recall, remember } from "./preferences.js";
import { bindThemeButton } from "./theme.js";
import { UserInterface } from "./ui.js";

/** @import { CallState } from "../element/call.js" */
/** @import { StreamStatistics } from "../element/connection.js" */
/** @import { EchoRtc } from "../element/element.js" */
/** @import { LinkFigures } from "../element/figures.js" */
/** @import { Avatar, Configuration } from "../element/server.js" */
/** @import { Source } from "../element/words.js" */

class App {
  /** @type {EchoRtc} */ #echo;
  #ui = new UserInterface();
  /** @type {AudioContext | null} Made by the first voice: browsers want a gesture for it. */ #audio = null;
  /** @type {LevelMeter | null} */ #meter = null;
  #frame = 0;

  /** @param {EchoRtc} echo */
  constructor(echo) {
    this.#echo = echo;
  }

  /** Shows the page and waits for the visitor. */
  run() {
    const echo = this.#echo;
    const ui = this.#ui;
    const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ handle) =>
      echo.addEventListener(name, (event) => handle(/** @type {CustomEvent} */ (event).detail));
    bindThemeButton(ui.themeButton);
    this.#useToken(tokenOfAddress() ?? recall("token", true));
    echo.setMicrophone(recall("device") ?? "");
    echo.volume = Number(recall("volume") ?? 1);
    echo.addEventListener("volumechange", () => remember("volume", String(echo.volume)));
    echo.addEventListener("playing", () => ui.showPhase("live"));
    on("configuration", (/** @type {Configuration} */ configuration) => ui.showConfiguration(configuration));
    on("avatars", (/** @type {Avatar[]} */ avatars) => {
      const kept = recall("avatar");
      const chosen = avatars.find(({ name }) => name === kept) ?? avatars[0];
      ui.showAvatars(avatars, chosen?.name ?? "");
      echo.setAttribute("avatar", chosen?.name ?? "");
    });
    on("error", (/** @type {{ code: string }} */ { code }) => {
      if (code === "unauthorized") {
        ui.askForToken();
      }
    });
    on("state", (/** @type {{ state: CallState }} */ { state }) => this.#onState(state));
    on("stats", (/** @type {{ stream: StreamStatistics, link: LinkFigures }} */ { stream, link }) => {
      ui.showStream(stream);
      ui.showLink(link);
    });
    on("voice", (/** @type {{ source: Source, track: MediaStreamTrack | null }} */ { source, track }) => {
      ui.source = source;
      this.#measure(track);
      this.#showDevices();
    });
    ui.addEventListener("source", () => (ui.source === "sample" ? echo.useSample() : this.#useMicrophone()));
    ui.addEventListener("device", () => {
      remember("device", ui.device);
      this.#useMicrophone();
    });
    ui.addEventListener("avatar", () => {
      remember("avatar", ui.avatar);
      echo.setAttribute("avatar", ui.avatar);
    });
    ui.addEventListener("token", () => {
      this.#useToken(ui.token);
      echo.start();
    });
    onDevicesChanged(() => this.#showDevices());
    document.addEventListener("visibilitychange", () => this.#audio?.resume().catch(() => {}));
    this.#showDevices();
  }

  /** @param {string | null} token */
  #useToken(token) {
    if (token !== null) {
      remember("token", token, true);
      this.#echo.setAttribute("token", token);
    }
  }

  #useMicrophone() {
    this.#echo.setMicrophone(recall("device") ?? "");
  }

  /** @param {CallState} state */
  #onState(state) {
    if (state === "new" || state === "closed" || state === "waiting") {
      this.#ui.showStream(null);
      this.#ui.showLink(null);
      this.#ui.showPhase(state === "waiting" ? "calling" : "off");
    } else if (state === "connecting" && this.#ui.phase === "off") {
      this.#ui.showPhase("calling");
    }
  }

  async #showDevices() {
    this.#ui.showDevices(await microphones(), recall("device") ?? "");
  }

  /** @param {MediaStreamTrack | null} track */
  #measure(track) {
    if (track !== null) {
      this.#audio ??= new AudioContext();
      this.#meter ??= new LevelMeter(this.#audio);
      this.#audio.resume().catch(() => {});
    }
    this.#meter?.attach(track);
    this.#animate(track !== null);
  }

  /**
   * Moves the level as long as there is a voice.
   * @param {boolean} speaks
   */
  #animate(speaks) {
    cancelAnimationFrame(this.#frame);
    this.#ui.showLevel(this.#meter?.read() ?? 0);
    if (speaks) {
      this.#frame = requestAnimationFrame(() => this.#animate(true));
    }
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
