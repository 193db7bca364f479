/**
 * The element itself: decides what follows from what the visitor does, what the page around asks, and what happens to
 * the call.
 */

import { EchoCall, backOffS } from "./call.js";
import { Captions } from "./captions.js";
import { detailOf } from "./dom.js";
import { LinkMeter } from "./figures.js";
import { LevelMeter, SpeechDetector } from "./meter.js";
import { Refusal, Server } from "./server.js";
import { View, durationOf } from "./view.js";
import { MicrophoneError, borrow, openMicrophone, openSample } from "./voice.js";
import { ANNOUNCEMENTS, BANNERS, Words, unsaid } from "./words.js";

/** @import { CallState, End, Wait } from "./call.js" */
/** @import { Caption } from "./captions.js" */
/** @import { SpeechReport, StreamStatistics } from "./connection.js" */
/** @import { Avatar } from "./server.js" */
/** @import { Phase } from "./view.js" */
/** @import { Voice } from "./voice.js" */
/** @import { ActionName, Mode, Notice, Source } from "./words.js" */

/** The folder above this module's is the address of its server, unless the attribute src says otherwise. */
const HOME = new URL("..", import.meta.url).href;
/** A microphone that is not open by now waits for the visitor's word. */
const ASKING_MS = 500;
/** A server that is starting is asked this often whether it is ready. */
const POLL_MS = 1_500;
const BANNER_MS = 6_000;
/** How often the visitor's level is measured and shown. */
const LEVEL_MS = 50;
/** Least time between two reminders to a visitor who speaks while muted. */
const UNHEARD_MS = 15_000;

/**
 * @typedef {{ source: "microphone", device: string } | { source: "sample" }
 *     | { source: "track", track: MediaStreamTrack }} Choice
 */

/** The element. README.md says what is public of it. */
export class EchoRtc extends HTMLElement {
  static observedAttributes = [
    "src",
    "avatar",
    "token",
    "mode",
    "name",
    "muted",
    "controls",
    "captions",
    "poster",
    "sample",
  ];

  #view = new View(this.attachShadow({ mode: "closed", delegatesFocus: true }));
  #states = this.attachInternals().states;
  #link = new LinkMeter();
  #captions = new Captions((caption) => this.#onCaption(caption));
  #recorded = false;
  /** @type {Choice} */ #choice = { source: "microphone", device: "" };
  /** What the present voice was opened for. */
  #sent = this.#choice;
  /** The microphone to go back to from another voice. */
  #device = "";
  /** @type {EchoCall | null} */ #call = null;
  /** @type {Voice | null} */ #voice = null;
  /** @type {((isLive: boolean) => void)[]} Resolvers of start(). */ #startWaiters = [];
  /** Goes up with each change of the voice; what was asked for before then comes too late. */
  #voiceTurn = 0;
  /** Goes up with each server that is asked; what another one answers comes too late. */
  #pollTurn = 0;
  #microphoneMuted = false;
  /** Whether it is the browser that took the sound away. */
  #autoplayBlocked = false;
  /** Whether the server is still loading. */
  #isStarting = false;
  /** @type {Set<string>} Events of pushed speech that are being said or wait for it, by their ids. */ #saying = new Set();
  /** Whether the present stream is ours: then we are told of its pushed speech. */
  #isOwner = false;
  #madeEvents = 0;
  /** The volume to go back to from silence. */
  #lastVolume = 1;
  /** @type {LevelMeter | null} Of the voice; made by the first one. */ #meter = null;
  #speech = new SpeechDetector();
  /** Whether the visitor speaks at the moment, muted or not. */
  #isSpeaking = false;
  #unheardSince = -UNHEARD_MS;
  /** When Escape was pressed once in a running call. */
  #endAskedAt = -BANNER_MS;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #levelTimer;
  /** @type {Avatar[]} Empty until the server has said which it has. */ #avatars = [];
  /** Whether the visitor is being greeted, and nothing else is on the stage. */
  #welcoming = true;
  /** @type {CallState} */ #state = "new";
  /** @type {number | null} `performance.now()` when the picture first came. */ #liveSince = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #bannerTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #pollTimer;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #clockTimer;
  #onPageHide = () => this.#call?.close(true);
  #onVisible = () => this.#meter?.resume();
  #onDeviceChange = () => {
    if (this.#voice?.source === "microphone" && this.#voice.track.readyState === "ended") {
      this.#voiceLost(this.#voice);
    }
  };

  constructor() {
    super();
    const view = this.#view;
    const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ handle) =>
      view.addEventListener(name, (event) => handle(detailOf(event)));
    on("action", (/** @type {ActionName} */ name) => this.#perform(name));
    on("mute", () => (this.microphoneMuted = !this.#microphoneMuted));
    on("silence", () => (this.muted = !this.muted));
    on("unmute", () => (this.muted = false));
    on("volume", () => (this.volume = view.volume));
    on("token", (/** @type {string} */ token) => this.#useToken(token));
    view.say.addEventListener("say", (event) => this.say(detailOf(event)));
    view.say.addEventListener("interrupt", () => this.interrupt());
    this.addEventListener("keydown", (event) => this.#onKey(event));
    this.addEventListener("pointerdown", this.#onVisible);
    view.video.addEventListener("pause", () => this.#onPause());
    this.#enter("new");
  }

  connectedCallback() {
    addEventListener("pagehide", this.#onPageHide);
    document.addEventListener("visibilitychange", this.#onVisible);
    navigator.mediaDevices?.addEventListener?.("devicechange", this.#onDeviceChange);
    this.#view.showControls(this.hasAttribute("controls"), this.#mode);
    if (this.#call === null) {
      this.#restart();
      if (this.hasAttribute("autoplay")) {
        this.start();
      }
    }
  }

  /** An element that only moves within the page goes on; one that is taken out gives everything back. */
  disconnectedCallback() {
    queueMicrotask(() => {
      if (!this.isConnected) {
        removeEventListener("pagehide", this.#onPageHide);
        document.removeEventListener("visibilitychange", this.#onVisible);
        navigator.mediaDevices?.removeEventListener?.("devicechange", this.#onDeviceChange);
        this.stop();
        this.#meter?.close();
        this.#meter = null;
        this.#pollTurn += 1;
        clearTimeout(this.#pollTimer);
      }
    });
  }

  /**
   * @param {string} name
   * @param {string | null} before
   * @param {string | null} now
   */
  attributeChangedCallback(name, before, now) {
    switch (name) {
      case "muted":
        this.#silence(now !== null);
        break;
      case "controls":
        this.#view.showControls(now !== null, this.#mode);
        this.#showSilence();
        break;
      case "captions":
        this.#view.showCaptions(this.getAttribute("captions"));
        break;
      case "poster":
        this.#showPoster();
        break;
      case "avatar":
        this.#showPoster(); // asked for by the next start
        break;
      default:
        if (before !== now && this.isConnected && this.#call === null) {
          this.#view.showControls(this.hasAttribute("controls"), this.#mode);
          this.#restart();
        }
    }
  }

  /** What the call is doing. */
  get state() {
    return this.#state;
  }

  /**
   * The id of a call's stream, which looks at it, speaks to it and ends it; null while there is none, and in a view.
   * @returns {string | null}
   */
  get stream() {
    const session = this.#mode === "view" ? null : (this.#call?.session ?? null);
    return session === null ? null : decodeURIComponent(session.slice(session.lastIndexOf("/") + 1));
  }

  /** The avatar's sound and picture, for a page that does more with them; null while there is none. */
  get media() {
    return /** @type {MediaStream | null} */ (this.#view.video.srcObject);
  }

  /** Whether the avatar is not heard. */
  get muted() {
    return this.hasAttribute("muted");
  }

  set muted(muted) {
    this.toggleAttribute("muted", muted);
  }

  /** Whether the avatar hears silence. */
  get microphoneMuted() {
    return this.#microphoneMuted;
  }

  set microphoneMuted(muted) {
    this.#microphoneMuted = muted;
    if (this.#voice !== null) {
      this.#voice.track.enabled = !muted;
    }
    this.#unheardSince = -UNHEARD_MS;
    this.#view.showMuted(muted);
    this.#view.announce(muted ? ANNOUNCEMENTS.muted : ANNOUNCEMENTS.unmuted);
    this.#showBanner("");
    this.#showState();
  }

  /** The avatar's volume, 0..1; setting it also ends a silence. */
  get volume() {
    return this.#view.video.volume;
  }

  set volume(volume) {
    this.#setVolume(Number.isFinite(volume) ? Math.min(1, Math.max(0, volume)) : 1);
    this.muted = volume === 0;
    this.dispatchEvent(new Event("volumechange"));
  }

  /**
   * Opens the call or the view; one that is open is ended first.
   * @returns {Promise<boolean>} Whether a picture came; false once it is over without one.
   */
  start() {
    this.stop();
    const isLive = new Promise((/** @type {(isLive: boolean) => void} */ resolve) => this.#startWaiters.push(resolve));
    const server = this.#server();
    const wish = { mode: this.#mode, avatar: this.getAttribute("avatar") ?? "", name: this.getAttribute("name") ?? "" };
    const trouble = this.#impossible;
    if (server === null || trouble !== null) {
      this.#resolveStarts(false);
      this.#showTrouble(trouble ?? this.#words.impossible("address"));
      return isLive;
    }
    const call = new EchoCall(server, wish);
    this.#call = call;
    this.#follow(call);
    this.#welcoming = false;
    this.#showPhase("calling");
    this.#enter("connecting");
    this.#view.showNotice(this.#words.connecting());
    this.#view.announce("", true);
    this.#view.announce(this.#words.connecting().title);
    if (wish.mode !== "call") {
      call.start(null);
    } else {
      setTimeout(() => {
        if (this.#call === call && call.state === "new" && this.#choice.source === "microphone") {
          this.#view.showNotice(this.#words.asking());
        }
      }, ASKING_MS);
      this.#takeVoice(call);
    }
    return isLive;
  }

  /**
   * Has the avatar say a text, behind what it is saying already; in the mode "text", at a server that says text.
   * @param {string} text
   * @returns {Promise<boolean>} Whether the server has taken it.
   */
  async say(text) {
    const call = this.#call;
    this.#madeEvents += 1;
    const eventId = `said-${this.#madeEvents}`;
    if (call === null || this.#mode !== "text") {
      return false;
    }
    this.#saying.add(eventId);
    this.#showSaying();
    try {
      await call.say(text, eventId);
      return true;
    } catch (error) {
      if (!(error instanceof Refusal)) {
        throw error; // a fault of this module, which the console should show
      }
      if (this.#call === call) {
        this.#view.say.giveBack(text);
        this.#onSpeech({ step: "failed", eventId, detail: error.detail });
        this.#onSpeech({ step: "ended", eventId, detail: "" });
      }
      return false;
    }
  }

  /** Silences what the avatar is saying, and all that waits, where the stream is one's own. */
  interrupt() {
    this.#call?.interrupt();
  }

  /** Ends the call, if there is one, and gives everything back. */
  stop() {
    this.#call?.close();
  }

  /**
   * Chooses the voice: of the present call from now on, or of the next one.
   * @param {string | MediaStreamTrack} [microphone] A device's id, "" for the system's choice; or a track with sound.
   * @returns {Promise<boolean>} Whether it is chosen, and sent if there is a call.
   */
  async setMicrophone(microphone = "") {
    if (typeof microphone === "string") {
      this.#device = microphone;
      return this.#choose({ source: "microphone", device: microphone });
    }
    if (!(microphone instanceof MediaStreamTrack) || microphone.kind !== "audio") {
      throw new TypeError("setMicrophone takes the id of a microphone or a MediaStreamTrack with sound");
    }
    return this.#choose({ source: "track", track: microphone });
  }

  /**
   * Chooses the recorded voice that the attribute sample names, as `setMicrophone` does.
   * @returns {Promise<boolean>}
   */
  async useSample() {
    return this.#choose({ source: "sample" });
  }

  /** @returns {Mode} */
  get #mode() {
    const mode = this.getAttribute("mode");
    return mode === "view" || mode === "text" ? mode : "call";
  }

  get #words() {
    return new Words(this.hasAttribute("sample"));
  }

  /** @returns {Notice | null} Why no call is possible whatever the visitor does. */
  get #impossible() {
    const isNameless = this.#mode === "view" && (this.getAttribute("name") ?? "") === "";
    const why =
      globalThis.RTCPeerConnection === undefined ? "unsupported"
      : this.#server() === null ? "address"
      : isNameless ? "nameless"
      : null;
    return why === null ? null : this.#words.impossible(why);
  }

  /** @returns {Server | null} null where the attribute src is no address. */
  #server() {
    const src = this.getAttribute("src") ?? HOME;
    if (!URL.canParse(src, document.baseURI)) {
      return null;
    }
    const { protocol, origin, pathname } = new URL(src, document.baseURI);
    return /^https?:$/.test(protocol) ? new Server(origin + pathname, this.getAttribute("token") ?? "") : null;
  }

  /** The picture that the page gave, or the avatar's own. */
  #showPoster() {
    const wanted = this.getAttribute("avatar");
    const avatar = this.#avatars.find(({ name }) => name === wanted) ?? this.#avatars[0];
    this.#view.showPoster(this.getAttribute("poster") ?? avatar?.preview ?? "");
  }

  #showWelcome() {
    this.#welcoming = true;
    this.#view.showNotice(this.#words.welcome(this.#mode, this.#choice.source, this.#isStarting));
  }

  /** Greets the visitor on the part of a server that may have changed. */
  #restart() {
    clearTimeout(this.#pollTimer);
    this.#avatars = [];
    this.#view.showMark(true); // until this server says otherwise
    this.#showPoster();
    const trouble = this.#impossible;
    if (trouble !== null) {
      this.#showTrouble(trouble);
      return;
    }
    this.#enter("new");
    this.#showWelcome();
    this.#poll(++this.#pollTurn, 0);
  }

  /**
   * Finds out what the server has to offer, and view again until it is ready.
   * @param {number} turn
   * @param {number} failures In a row so far.
   */
  async #poll(turn, failures) {
    const server = this.#server();
    /** @type {Refusal | null} */ let refusal = null;
    try {
      if (server !== null) {
        await this.#showServer(server, () => turn === this.#pollTurn);
      }
    } catch (error) {
      if (!(error instanceof Refusal)) {
        throw error; // a fault of this module, which the console should show
      }
      refusal = error;
    }
    if (turn !== this.#pollTurn) {
      return;
    }
    const isStarting = refusal?.kind === "starting";
    this.#isStarting = isStarting;
    if (refusal !== null) {
      const waitMs = isStarting ? POLL_MS : 1000 * backOffS(failures, Math.random());
      this.#pollTimer = setTimeout(() => this.#poll(turn, isStarting ? 0 : failures + 1), waitMs);
    }
    if (this.#welcoming) {
      this.#showWelcome();
    }
  }

  /**
   * Shows what a server has to offer; rejects with its Refusal while it takes no calls.
   * @param {Server} server
   * @param {() => boolean} isWanted Whether it is still the one that is asked.
   */
  async #showServer(server, isWanted) {
    const configuration = await server.configuration();
    if (!isWanted()) {
      return;
    }
    this.#view.showSize(configuration.width, configuration.height);
    this.#view.showText(configuration.speak_text === true);
    this.#view.showMark(configuration.mark !== false);
    this.#emit("configuration", configuration);
    // It has none before it has started.
    if (this.#mode !== "view" && configuration.avatars.length > this.#avatars.length) {
      const avatars = await server.avatars();
      if (!isWanted()) {
        return;
      }
      this.#avatars = avatars;
      this.#showPoster();
      this.#emit("avatars", avatars);
    }
    await server.ready();
  }

  /** @param {ActionName} name */
  #perform(name) {
    switch (name) {
      case "start":
        return this.start();
      case "microphone":
        return this.#choose({ source: "microphone", device: this.#device }, true);
      case "sample":
        return this.#choose({ source: "sample" }, true);
      case "retry":
        return this.#call?.retry();
      case "stop":
        return this.stop();
      case "play":
        return this.#play();
    }
  }

  /**
   * @param {Choice} choice
   * @param {boolean} [start] Whether a call is wanted, too, if there is none.
   * @returns {Promise<boolean>}
   */
  async #choose(choice, start = false) {
    this.#choice = choice;
    this.#emitVoice();
    if (this.#call !== null) {
      return this.#mode !== "call" || this.#takeVoice(this.#call);
    }
    if (start) {
      return this.start();
    }
    if (this.#welcoming && this.isConnected) {
      this.#showWelcome();
    }
    return true;
  }

  /**
   * Opens the chosen voice for a call: starts the call with it, or changes over to it.
   * @param {EchoCall} call
   * @returns {Promise<boolean>} Whether the call has that voice now.
   */
  async #takeVoice(call) {
    const turn = ++this.#voiceTurn;
    const isCurrent = () => turn === this.#voiceTurn && this.#call === call;
    const choice = this.#choice;
    /** @type {Voice} */ let voice;
    try {
      voice = await this.#open(choice);
    } catch (error) {
      if (isCurrent()) {
        this.#voiceFailed(call, choice, error);
      }
      return false;
    }
    if (!isCurrent()) {
      voice.close();
      return false;
    }
    const before = this.#voice;
    this.#voice = voice;
    this.#sent = choice;
    voice.track.enabled = !this.#microphoneMuted;
    voice.addEventListener("lost", () => this.#voiceLost(voice));
    this.#measure(voice.track);
    this.#emitVoice();
    if (call.state === "new") {
      this.#view.showNotice(this.#words.connecting());
      call.start(voice.track);
    } else {
      await call.setVoice(voice.track);
    }
    before?.close();
    return true;
  }

  /**
   * @param {Choice} choice
   * @returns {Promise<Voice>}
   */
  async #open(choice) {
    switch (choice.source) {
      case "microphone":
        return openMicrophone(choice.device);
      case "sample":
        return openSample(this.getAttribute("sample"));
      case "track":
        return borrow(choice.track);
    }
  }

  /**
   * @param {EchoCall} call
   * @param {Choice} choice
   * @param {unknown} error
   */
  #voiceFailed(call, choice, error) {
    const notice =
      choice.source === "sample" ? this.#words.withoutSample()
      : this.#words.withoutMicrophone(error instanceof MicrophoneError ? error.fault : "failed", location.host);
    if (call.state === "new") {
      call.close();
      this.#choice = choice;
      this.#emitVoice();
      this.#showTrouble(notice);
      return;
    }
    this.#emitError(notice);
    if (this.#voice?.track.readyState === "live") {
      this.#choice = this.#sent;
      this.#emitVoice();
      this.#showBanner(BANNERS.voiceFailed);
    } else {
      this.#showBanner(BANNERS.micLost, false);
    }
  }

  /** @param {Voice} voice */
  async #voiceLost(voice) {
    if (this.#call !== null && this.#voice === voice && (await this.#takeVoice(this.#call))) {
      this.#showBanner(BANNERS.micMoved);
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
    on("stats", (/** @type {StreamStatistics | null} */ statistics) => this.#onStatistics(call, statistics));
    on("caption", (/** @type {Caption} */ caption) => this.#captions.take(caption));
    on("recording", (/** @type {boolean} */ active) => this.#onRecording(active));
    on("speech", (/** @type {SpeechReport} */ report) => this.#onSpeech(report));
    on("steady", (/** @type {boolean} */ steady) => this.#showBanner(steady ? "" : BANNERS.unsteady, false));
    on("wait", (/** @type {Wait} */ wait) => this.#onWait(wait));
    on("end", (/** @type {End} */ end) => this.#onEnd(end));
  }

  /** @param {CallState} state */
  #onState(state) {
    if (state === "waiting" || state === "closed") {
      return; // "wait" and "end" follow at once, and know more
    }
    this.#enter(state);
    this.#showState();
    if (state === "connecting") {
      this.#view.showAttempt();
    } else if (state === "behind") {
      this.#view.announce(ANNOUNCEMENTS.behind);
    }
  }

  /** @param {MediaStream} media */
  #onMedia(media) {
    this.#link.reset();
    this.#view.video.srcObject = media;
    this.#play();
  }

  /** Browsers pause what a script gives its sound back without a tap; phones pause what is put away. */
  #onPause() {
    if (this.#states.has("live") && this.media?.active) {
      this.#play();
    }
  }

  async #play() {
    const { video } = this.#view;
    const media = video.srcObject;
    if (!(await this.#plays(media)) || video.srcObject !== media || this.#call === null) {
      return;
    }
    this.#liveSince ??= performance.now();
    this.#clockTimer ??= setInterval(() => this.#tick(), 1_000);
    this.#tick();
    this.#showPhase("live");
    this.#showBanner("");
    this.#showState();
    this.#showSilence();
    const connected = { call: ANNOUNCEMENTS.calling, view: ANNOUNCEMENTS.watching, text: ANNOUNCEMENTS.typing };
    this.#view.announce(connected[this.#mode]);
    this.#resolveStarts(true);
    this.dispatchEvent(new Event("playing"));
  }

  /**
   * Plays, without sound where the browser wants a tap for it, and asks for that tap where it plays nothing at all.
   * @param {MediaProvider | null} media
   * @returns {Promise<boolean>} Whether it plays.
   */
  async #plays(media) {
    const { video } = this.#view;
    for (const isLastTry of [video.muted, true]) {
      try {
        await video.play();
        return true;
      } catch (error) {
        const isForbidden = error instanceof DOMException && error.name === "NotAllowedError";
        if (!isForbidden || video.srcObject !== media) {
          return false;
        }
        if (isLastTry) {
          break;
        }
        this.#autoplayBlocked = true;
        this.muted = true;
      }
    }
    if (this.#autoplayBlocked) {
      this.#autoplayBlocked = false;
      this.muted = false;
    }
    this.#view.showNotice(this.#words.tapToPlay());
    return false;
  }

  /**
   * @param {EchoCall} call
   * @param {StreamStatistics | null} stream
   */
  async #onStatistics(call, stream) {
    const report = await call.report();
    if (report !== null && this.#call === call) {
      this.#emit("stats", { stream, link: this.#link.read(report) });
    }
  }

  /** @param {Caption} caption */
  #onCaption(caption) {
    this.#view.showCaption(caption.text);
    this.#emit("caption", caption);
  }

  /** @param {boolean} active */
  #onRecording(active) {
    if (active === this.#recorded) {
      return;
    }
    this.#recorded = active;
    this.#view.showRecording(active);
    this.#view.announce(active ? ANNOUNCEMENTS.recorded : ANNOUNCEMENTS.unrecorded);
    this.#emit("recording", { active });
  }

  /** What was recorded was another connection. */
  #forgetRecording() {
    this.#recorded = false;
    this.#view.showRecording(false);
  }

  /** @param {SpeechReport} report */
  #onSpeech(report) {
    const { step, eventId, detail } = report;
    this.#isOwner = true;
    if (step === "started") {
      this.#saying.add(eventId);
    } else if (step === "failed") {
      const message = unsaid(detail);
      this.#showBanner(message);
      this.#emit("error", { code: "speech", message });
    } else {
      this.#saying.delete(eventId);
    }
    if (step === "interrupted") {
      this.#view.announce(BANNERS.interrupted);
    }
    this.#showSaying();
    this.#emit("speech", { step, eventId });
  }

  /** What was being said is no longer, because the connection is gone. */
  #forgetSpeech() {
    this.#captions.clear();
    this.#saying.clear();
    this.#isOwner = false;
    this.#showSaying();
  }

  #showSaying() {
    this.#view.showSaying(this.#isOwner, this.#saying.size > 0);
  }

  /** @param {Wait} wait */
  #onWait(wait) {
    this.#forgetSpeech();
    this.#forgetRecording();
    const notice = this.#words.waiting(wait, this.getAttribute("name") ?? "");
    this.#enter("waiting", { why: wait.why, message: `${notice.title}. ${notice.text}`, retryMs: wait.delayMs });
    this.#showPhase("calling");
    this.#showBanner("");
    this.#view.showNotice(notice, wait.quiet ? undefined : performance.now() + wait.delayMs);
    this.#view.announce(`${notice.title}. ${notice.text}`, wait.why === "lost");
  }

  /** @param {End} end */
  #onEnd(end) {
    const length = this.#liveSince === null ? null : durationOf((performance.now() - this.#liveSince) / 1000);
    this.#call = null;
    this.#forgetSpeech();
    this.#forgetRecording();
    this.#voiceTurn += 1;
    this.#voice?.close();
    this.#voice = null;
    this.#measure(null);
    this.#liveSince = null;
    clearInterval(this.#clockTimer);
    this.#clockTimer = undefined;
    this.#view.video.srcObject = null;
    this.#showPhase("off");
    this.#view.showClock(null);
    this.#showBanner("");
    this.#showSilence();
    const { why } = end;
    if (why === "closed") {
      this.#enter("new");
      if (this.isConnected) {
        this.#showGoodbye(length);
      }
    } else {
      const notice = this.#words.ended({ ...end, why }, length);
      this.#enter("closed", { why, message: `${notice.title}. ${notice.text}` });
      this.#showTrouble(notice);
    }
    this.#emitVoice();
    this.#resolveStarts(false);
  }

  /** @param {string | null} length Of the call that the visitor ended; null where it never began. */
  #showGoodbye(length) {
    if (length === null) {
      this.#showWelcome();
      return;
    }
    this.#welcoming = true;
    const notice = this.#words.goodbye(this.#mode, this.#choice.source, length);
    this.#view.showNotice(notice);
    this.#view.announce(`${notice.title}. ${notice.text}`);
  }

  /**
   * @param {CallState} state
   * @param {Record<string, unknown>} [more]
   */
  #enter(state, more) {
    if (state !== this.#state || more !== undefined) {
      this.#states.delete(this.#state);
      this.#state = state;
      this.#emit("state", { state, ...more });
    }
    this.#states.add(state);
    this.#showState();
  }

  /** The state as visitors see it: the page hears their voice long before the avatar can say it. */
  #showState() {
    const isHeard = this.#isSpeaking && !this.#microphoneMuted && this.#mode === "call";
    this.#view.showState(this.#state === "idle" && isHeard ? "hearing" : this.#state);
  }

  /** @param {Phase} phase */
  #showPhase(phase) {
    this.#view.showPhase(phase);
    this.#states[phase === "live" ? "add" : "delete"]("live");
  }

  /** @param {Notice} notice */
  #showTrouble(notice) {
    this.#welcoming = false;
    this.#view.showNotice(notice);
    this.#view.announce(`${notice.title}. ${notice.text}`, true);
    this.#emitError(notice);
  }

  /** @param {boolean} silent */
  #silence(silent) {
    this.#view.video.muted = silent;
    if (!silent && this.volume === 0) {
      this.#setVolume(this.#lastVolume);
    }
    this.#autoplayBlocked &&= silent;
    this.#showSilence();
    this.dispatchEvent(new Event("volumechange"));
  }

  /** Without controls, or where the browser took it, the sound is offered over the picture. */
  #showSilence() {
    const offered = this.#liveSince !== null && (this.#autoplayBlocked || !this.hasAttribute("controls"));
    this.#view.showSilent(this.muted, offered);
  }

  /** @param {number} volume 0..1 */
  #setVolume(volume) {
    this.#lastVolume = volume || this.#lastVolume;
    this.#view.video.volume = volume;
    this.#view.showVolume(volume);
  }

  /**
   * @param {string} text "" for none: then it is said, for as long as it is so, that the visitor is muted.
   * @param {boolean} [passing] Whether it goes away by itself.
   */
  #showBanner(text, passing = true) {
    clearTimeout(this.#bannerTimer);
    const isMuted = this.#microphoneMuted && this.#states.has("live") && this.#mode === "call";
    this.#view.showBanner(text === "" && isMuted ? BANNERS.muted : text, isMuted);
    if (text !== "") {
      this.#view.announce(text);
      if (passing) {
        this.#bannerTimer = setTimeout(() => this.#showBanner(""), BANNER_MS);
      }
    }
  }

  /** @param {MediaStreamTrack | null} track The voice to show the level of; null for none. */
  #measure(track) {
    clearInterval(this.#levelTimer);
    if (track !== null) {
      this.#meter ??= new LevelMeter();
      this.#levelTimer = setInterval(() => this.#showLevel(), LEVEL_MS);
    }
    this.#meter?.attach(track);
    this.#speech = new SpeechDetector();
    this.#showLevel();
  }

  #showLevel() {
    const level = this.#meter?.read() ?? 0;
    const now = performance.now();
    const isSpeaking = this.#speech.update(level, now);
    this.#view.showLevel(this.#microphoneMuted ? 0 : level);
    this.#emit("level", { level, speaking: isSpeaking });
    if (isSpeaking !== this.#isSpeaking) {
      this.#isSpeaking = isSpeaking;
      this.#showState();
    }
    if (isSpeaking && this.#microphoneMuted && this.#states.has("live") && now - this.#unheardSince > UNHEARD_MS) {
      this.#unheardSince = now;
      this.#showBanner(BANNERS.unheard);
    }
  }

  /**
   * Shortcuts, while the focus is within the element: everywhere else the keys are the page's.
   * @param {KeyboardEvent} event
   */
  #onKey(event) {
    const isTyping = event.composedPath()[0] instanceof HTMLInputElement && event.key !== "Escape";
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || isTyping || this.#call === null) {
      return;
    }
    const key = String(event.key).toLowerCase(); // browsers that fill fields in send events without one
    if (key === "m" && this.#mode === "call") {
      this.microphoneMuted = !this.#microphoneMuted;
    } else if (key === "i" && this.#saying.size > 0) {
      this.interrupt();
    } else if (key === "s") {
      this.muted = !this.muted;
    } else if (key === "escape") {
      this.#endByKey();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Cancels what has not begun yet; a running call takes the key twice. */
  #endByKey() {
    const now = performance.now();
    if (!this.#states.has("live") || now - this.#endAskedAt <= BANNER_MS) {
      this.#endAskedAt = -BANNER_MS;
      this.stop();
      return;
    }
    this.#endAskedAt = now;
    this.#showBanner(BANNERS.endByKey);
  }

  /** @param {string} token What the visitor gave. */
  #useToken(token) {
    this.setAttribute("token", token);
    this.#emit("token", { token });
    this.start();
  }

  #tick() {
    if (this.#liveSince !== null) {
      this.#view.showClock((performance.now() - this.#liveSince) / 1000);
    }
  }

  /** @param {boolean} isLive */
  #resolveStarts(isLive) {
    for (const resolve of this.#startWaiters.splice(0)) {
      resolve(isLive);
    }
  }

  #emitVoice() {
    this.#emit("voice", { source: this.#choice.source, track: this.#voice?.track ?? null });
  }

  /** @param {Notice} notice */
  #emitError({ code, title, text }) {
    this.#emit("error", { code, message: `${title}. ${text}` });
  }

  /**
   * @param {string} name
   * @param {unknown} detail
   */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
