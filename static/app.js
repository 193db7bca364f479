/**
 * The page: puts a voice, a call and the elements together.
 *
 * Decides what follows from what the visitor does and what happens to the call. How anything is done is known by the
 * modules it brings together.
 */

import { EchoCall, backOffS } from "./call.js";
import { LevelMeter } from "./meter.js";
import { Microphone, MicrophoneError, microphones, onDevicesChanged } from "./microphone.js";
import { recall, remember } from "./preferences.js";
import { SampleVoice } from "./sample.js";
import { Refusal, Server } from "./signalling.js";
import { LinkMeter } from "./stats.js";
import { bindThemeButton } from "./theme.js";
import { UserInterface } from "./ui.js";
import * as words from "./words.js";

/** @import { CallState, End, Wait } from "./call.js" */
/** @import { StreamStatistics } from "./connection.js" */
/** @import { Source } from "./ui.js" */
/** @import { ActionName } from "./words.js" */

/** @typedef {{ track: MediaStreamTrack, close(): void }} Voice */

const SAMPLE_URL = "/static/sample.wav";
/** A microphone that is not open by now waits for the visitor's word. */
const ASKING_MS = 500;
/** While the server starts, its progress is shown this often. */
const LOOK_AGAIN_MS = 1_500;
const BANNER_MS = 6_000;

class App {
  #ui = new UserInterface();
  #server = new Server(location.origin);
  #link = new LinkMeter();
  /** @type {AudioContext | null} Made by the first start: browsers want a gesture for it. */ #audio = null;
  /** @type {LevelMeter | null} */ #meter = null;
  /** @type {EchoCall | null} */ #call = null;
  /** @type {Voice | null} */ #voice = null;
  /** Goes up with each change of the voice; what was asked for before then comes too late. */
  #voiceTurn = 0;
  #muted = false;
  /** What the server says while it is starting; null once it has started. */
  /** @type {string | null} */ #starting = null;
  /** Whether the visitor is being greeted, and nothing else is on the stage. */
  #greeting = true;
  /** @type {number | null} `performance.now()` when the picture first came. */ #liveSince = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #bannerTimer;
  #frame = 0;

  /** Shows the page and waits for the visitor. */
  run() {
    const ui = this.#ui;
    bindThemeButton(ui.themeButton);
    ui.source = "microphone";
    ui.addEventListener("action", (event) => this.#act(detailOf(event)));
    ui.addEventListener("mute", () => this.#mute(!this.#muted));
    ui.addEventListener("silence", () => this.#silence(!ui.video.muted));
    ui.addEventListener("volume", () => this.#setVolume(ui.volume));
    ui.addEventListener("source", () => this.#choose(ui.source));
    ui.addEventListener("device", () => this.#chooseDevice(ui.device));
    onDevicesChanged(() => this.#devicesChanged());
    addEventListener("pagehide", () => this.#call?.close(true));
    document.addEventListener("visibilitychange", () => this.#audio?.resume().catch(() => {}));
    setInterval(() => this.#tick(), 1_000);
    this.#setVolume(Number(recall("volume") ?? 1));
    this.#showDevices();
    if (globalThis.RTCPeerConnection === undefined) {
      ui.showNotice(words.withoutWebRtc());
      return;
    }
    this.#greet();
    this.#look(0);
  }

  #greet() {
    this.#greeting = true;
    this.#ui.showNotice(words.welcome(this.#ui.source, this.#starting));
  }

  /**
   * Finds out what the server has to offer, and looks again until it is ready.
   * @param {number} failures In a row so far.
   */
  async #look(failures) {
    try {
      this.#ui.showConfiguration(await this.#server.configuration());
      await this.#server.ready();
      this.#starting = null;
    } catch (error) {
      const isStarting = error instanceof Refusal && error.kind === "starting";
      this.#starting = isStarting ? error.detail : null;
      const waitMs = isStarting ? LOOK_AGAIN_MS : 1000 * backOffS(failures, Math.random());
      setTimeout(() => this.#look(isStarting ? 0 : failures + 1), waitMs);
    }
    if (this.#greeting) {
      this.#greet();
    }
  }

  /** @param {ActionName} action */
  #act(action) {
    switch (action) {
      case "start":
        return this.#start();
      case "microphone":
      case "sample":
        return this.#choose(action, true);
      case "retry":
        return this.#call?.retry();
      case "stop":
        return this.#stop();
      case "play":
        return this.#play();
    }
  }

  #start() {
    this.#stop();
    const call = new EchoCall({ server: location.origin, avatar: this.#ui.avatar });
    this.#call = call;
    this.#follow(call);
    this.#ui.showPhase("calling");
    this.#ui.showState("connecting");
    this.#greeting = false;
    this.#ui.showNotice(words.connecting());
    this.#ui.announce("", true);
    this.#ui.announce(words.connecting().title);
    setTimeout(() => {
      if (this.#call === call && call.state === "new" && this.#ui.source === "microphone") {
        this.#ui.showNotice(words.asking());
      }
    }, ASKING_MS);
    this.#takeVoice(call);
  }

  /** Ends the call, if there is one, and gives everything back. */
  #stop() {
    this.#call?.close();
  }

  /**
   * Opens the chosen voice for a call: starts the call with it, or changes over to it.
   * @param {EchoCall} call
   * @returns {Promise<boolean>} Whether the call has that voice now.
   */
  async #takeVoice(call) {
    const turn = ++this.#voiceTurn;
    const isCurrent = () => turn === this.#voiceTurn && this.#call === call;
    const source = this.#ui.source;
    /** @type {Voice} */ let voice;
    try {
      voice = await this.#open(source);
    } catch (error) {
      if (isCurrent()) {
        this.#voiceFailed(call, source, error);
      }
      return false;
    }
    if (!isCurrent()) {
      voice.close();
      return false;
    }
    const before = this.#voice;
    this.#voice = voice;
    voice.track.enabled = !this.#muted;
    this.#meter?.attach(voice.track);
    this.#animate();
    if (call.state === "new") {
      this.#ui.showNotice(words.connecting());
      call.start(voice.track);
    } else {
      await call.setVoice(voice.track);
    }
    before?.close();
    return true;
  }

  /**
   * @param {Source} source
   * @returns {Promise<Voice>}
   */
  async #open(source) {
    const audio = this.#audioContext();
    if (source === "sample") {
      return SampleVoice.open(audio, SAMPLE_URL);
    }
    const microphone = await Microphone.open(recall("device") ?? "");
    microphone.addEventListener("lost", () => this.#microphoneLost(microphone));
    this.#showDevices();
    return microphone;
  }

  /**
   * @param {EchoCall} call
   * @param {Source} source
   * @param {unknown} error
   */
  #voiceFailed(call, source, error) {
    const notice =
      source === "sample" ? words.withoutSample()
      : words.withoutMicrophone(error instanceof MicrophoneError ? error.fault : "failed", location.host);
    if (call.state === "new") {
      call.close();
      this.#ui.source = source;
      this.#showTrouble(notice);
    } else if (this.#voice?.track.readyState === "live") {
      this.#ui.source = this.#voice instanceof Microphone ? "microphone" : "sample";
      this.#showBanner(words.BANNERS.voiceFailed);
    } else {
      this.#showBanner(words.BANNERS.micLost, false);
    }
  }

  /** @param {EchoCall} call */
  #follow(call) {
    const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ handle) => {
      call.addEventListener(name, (event) => {
        if (this.#call === call) {
          handle(detailOf(event));
        }
      });
    };
    on("state", (/** @type {CallState} */ state) => this.#onState(state));
    on("media", (/** @type {MediaStream} */ media) => this.#onMedia(media));
    on("stats", (/** @type {StreamStatistics} */ statistics) => this.#onStatistics(call, statistics));
    on("steady", (/** @type {boolean} */ steady) => this.#showBanner(steady ? "" : words.BANNERS.unsteady, false));
    on("wait", (/** @type {Wait} */ wait) => this.#onWait(wait));
    on("end", (/** @type {End} */ end) => this.#onEnd(end));
  }

  /** @param {CallState} state */
  #onState(state) {
    this.#ui.showState(state);
    if (state === "connecting") {
      this.#ui.showAttempt();
    } else if (state === "behind") {
      this.#ui.announce(words.ANNOUNCEMENTS.behind);
    }
  }

  /** @param {MediaStream} media */
  #onMedia(media) {
    this.#link.reset();
    this.#ui.video.srcObject = media;
    this.#play();
  }

  async #play() {
    const { video } = this.#ui;
    const media = video.srcObject;
    try {
      await video.play();
    } catch (error) {
      if (video.srcObject === media && error instanceof DOMException && error.name === "NotAllowedError") {
        this.#ui.showNotice(words.tapToPlay());
      }
      return;
    }
    if (video.srcObject === media && this.#call !== null) {
      this.#liveSince ??= performance.now();
      this.#showBanner("");
      this.#ui.showPhase("live");
      this.#ui.announce(words.ANNOUNCEMENTS.connected);
    }
  }

  /**
   * @param {EchoCall} call
   * @param {StreamStatistics} statistics
   */
  async #onStatistics(call, statistics) {
    this.#ui.showStream(statistics);
    const report = await call.report();
    if (report !== null && this.#call === call) {
      this.#ui.showLink(this.#link.read(report));
    }
  }

  #clearFigures() {
    this.#ui.showStream(null);
    this.#ui.showLink(null);
  }

  /** @param {Wait} wait */
  #onWait(wait) {
    const notice = words.waiting(wait);
    this.#clearFigures();
    this.#showBanner("");
    this.#ui.showPhase("calling");
    this.#ui.showNotice(notice, wait.quiet ? undefined : performance.now() + wait.delayMs);
    this.#ui.announce(`${notice.title}. ${notice.text}`, wait.why === "lost");
  }

  /** @param {End} end */
  #onEnd(end) {
    this.#call = null;
    this.#voiceTurn += 1;
    this.#meter?.attach(null);
    this.#voice?.close();
    this.#voice = null;
    this.#liveSince = null;
    this.#ui.video.srcObject = null;
    this.#ui.showPhase("off");
    this.#ui.showClock(null);
    this.#clearFigures();
    this.#showBanner("");
    const notice = words.ended(end);
    if (notice === null) {
      this.#ui.showState("new");
      this.#ui.source = "microphone";
      this.#greet();
      this.#ui.announce(words.ANNOUNCEMENTS.stopped);
    } else {
      this.#ui.showState("closed");
      this.#showTrouble(notice);
    }
  }

  /** @param {import("./words.js").Notice} notice */
  #showTrouble(notice) {
    this.#greeting = false;
    this.#ui.showNotice(notice);
    this.#ui.announce(`${notice.title}. ${notice.text}`, true);
  }

  /** @param {boolean} muted */
  #mute(muted) {
    this.#muted = muted;
    if (this.#voice !== null) {
      this.#voice.track.enabled = !muted;
    }
    this.#ui.showMuted(muted);
    this.#ui.announce(muted ? words.ANNOUNCEMENTS.muted : words.ANNOUNCEMENTS.unmuted);
  }

  /** @param {boolean} silent */
  #silence(silent) {
    this.#ui.video.muted = silent;
    this.#ui.showSilent(silent);
  }

  /** @param {number} volume 0..1; moving the slider also ends a silence. */
  #setVolume(volume) {
    const heard = Number.isFinite(volume) ? Math.min(1, Math.max(0, volume)) : 1;
    this.#ui.volume = heard;
    this.#ui.video.volume = heard;
    this.#silence(heard === 0);
    remember("volume", String(heard));
  }

  /**
   * @param {Source} source
   * @param {boolean} [start] Whether a call is wanted, too, if there is none.
   */
  #choose(source, start = false) {
    this.#ui.source = source;
    if (this.#call !== null) {
      this.#takeVoice(this.#call);
    } else if (start) {
      this.#start();
    } else if (this.#greeting) {
      this.#greet();
    }
  }

  /** @param {string} device */
  #chooseDevice(device) {
    remember("device", device);
    this.#choose("microphone");
  }

  /** @param {Microphone} microphone */
  async #microphoneLost(microphone) {
    if (this.#call !== null && this.#voice === microphone && (await this.#takeVoice(this.#call))) {
      this.#showBanner(words.BANNERS.micMoved);
    }
  }

  #devicesChanged() {
    this.#showDevices();
    if (this.#voice instanceof Microphone && this.#voice.track.readyState === "ended") {
      this.#microphoneLost(this.#voice);
    }
  }

  async #showDevices() {
    this.#ui.showDevices(await microphones(), recall("device") ?? "");
  }

  /**
   * @param {string} text
   * @param {boolean} [passing] Whether it goes away by itself.
   */
  #showBanner(text, passing = true) {
    clearTimeout(this.#bannerTimer);
    this.#ui.showBanner(text);
    if (text !== "") {
      this.#ui.announce(text);
      if (passing) {
        this.#bannerTimer = setTimeout(() => this.#ui.showBanner(""), BANNER_MS);
      }
    }
  }

  #tick() {
    if (this.#liveSince !== null) {
      this.#ui.showClock((performance.now() - this.#liveSince) / 1000);
    }
  }

  /** Moves the level as long as there is a voice. */
  #animate() {
    cancelAnimationFrame(this.#frame);
    this.#ui.showLevel(this.#meter?.read() ?? 0);
    if (this.#voice !== null) {
      this.#frame = requestAnimationFrame(() => this.#animate());
    }
  }

  /** To be called within a gesture the first time. */
  #audioContext() {
    this.#audio ??= new AudioContext();
    this.#meter ??= new LevelMeter(this.#audio);
    this.#audio.resume().catch(() => {});
    return this.#audio;
  }
}

/** @param {Event} event */
function detailOf(event) {
  return /** @type {CustomEvent} */ (event).detail;
}

new App().run();
