/**
 * One RTCPeerConnection from the offer to its end: finds out when it is over and why. Does not decide whether there is
 * another attempt, and does not know where a voice comes from or where the avatar is shown.
 */

import { captionOf } from "./captions.js";
import { Refusal } from "./server.js";

/** @import { Mode } from "./words.js" */
/** @import { Server } from "./server.js" */

/**
 * @typedef {object} Outcome How a connection that had been answered ended.
 * @property {"closed" | "ended" | "stopping" | "offline" | "lost" | "blocked"} kind closed: by us. ended: by the
 *     server, which said so. stopping: by the server, which comes back. offline: the stream that was viewed has ended.
 *     lost: the network or the server is gone. blocked: the answer came, but sound and picture never found a way.
 * @property {string} detail The server's reason where it gave one, else "".
 * @property {number | null} retryAfterS When the server wants to be asked again, where it said so.
 */

/**
 * @typedef {object} StreamStatistics What the server says of the stream, once a second.
 * @property {number} delay_ms
 * @property {number} fps
 * @property {number} rendered
 * @property {number} held
 * @property {number} dropped
 * @property {number} idle
 * @property {number} steps Denoising steps of a clip at the moment; fewer while rendering is late.
 */

/**
 * @typedef {object} SpeechReport Progress of an event of pushed speech; sent to the stream's owner only.
 * @property {"started" | "ended" | "interrupted" | "failed"} step
 * @property {string} eventId
 * @property {string} detail Of a failure, a phrase.
 */

/**
 * @typedef {object} Wish What is to be opened.
 * @property {Mode} mode
 * @property {string} avatar Of a call; "" for the server's first.
 * @property {string} name The stream's name: for a call "" or the name under which others view it; for a view, the name to show.
 */

const SERVER_STATES = ["connecting", "idle", "speaking", "listening", "behind"];
/** Upper bound of the server's Retry-After. */
const MAX_RETRY_AFTER_S = 300;
const GATHERING_LIMIT_MS = 3_000;
const CONNECT_LIMIT_MS = 15_000;
/** Something comes from the server every second. Silent for this long, it is asked whether it still has the session. */
const QUIET_MS = 2_500;
const LIVENESS_MS = 500;
/** Time without the server's figures after which a view uses the browser's; the server sends them once a second. */
const STATS_GAP_MS = 1_200;

/**
 * Events, all CustomEvents: "media" (the avatar's MediaStream, once, when it begins), "state" (one of the server's, or
 * "watching"), "stats" (StreamStatistics once a second; null in a view that is told none), "caption" (Caption),
 * "speech" (SpeechReport), "recording" (whether the server records), "steady" (whether packets arrive at the moment).
 */
export class Connection extends EventTarget {
  /** @type {Server} */ #server;
  /** @type {Wish} */ #wish;
  /** @type {MediaStreamTrack | null} */ #voice;
  /** @type {RTCPeerConnection | null} */ #peer = null;
  /** @type {RTCRtpSender | null} */ #sender = null;
  /** @type {RTCDataChannel | null} */ #events = null;
  /** @type {string | null} */ #session = null;
  /** @type {MediaStream} */ #media = new MediaStream();
  /** @type {(outcome: Outcome) => void} */ #finish = () => {};
  /** @type {Promise<Outcome>} */ #over;
  #closed = false;
  #connected = false;
  #openedAt = 0;
  #lastMessageAt = 0;
  #lastStatsAt = 0;
  #received = 0;
  #checkingSession = false;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #livenessTimer;

  /**
   * @param {Server} server
   * @param {Wish} wish
   * @param {MediaStreamTrack | null} voice For a call.
   */
  constructor(server, wish, voice) {
    super();
    this.#server = server;
    this.#wish = wish;
    this.#voice = voice;
    this.#over = new Promise((resolve) => {
      this.#finish = resolve;
    });
  }

  /** Whether sound and picture have ever had a way. */
  get connected() {
    return this.#connected;
  }

  /** Where the server keeps what was opened; null while there is nothing. */
  get session() {
    return this.#session;
  }

  /** Resolves when the connection is over. */
  get over() {
    return this.#over;
  }

  /** Makes the offer and takes the answer. Rejects with a Refusal if the server will not. */
  async open() {
    const { ice_servers: iceServers = [] } = await this.#server.configuration();
    if (this.#closed) {
      return;
    }
    const peer = this.#prepare(iceServers);
    const offer = await completeOffer(peer);
    if (this.#closed) {
      return;
    }
    const answer = this.#isView
      ? await this.#server.view(offer, this.#wish.name)
      : await this.#server.call(offer, this.#wish);
    if (this.#closed) {
      this.#server.hangUp(answer.session);
      return;
    }
    this.#session = answer.session;
    this.#openedAt = this.#lastMessageAt = performance.now();
    this.#livenessTimer = setInterval(() => this.#checkLiveness(), LIVENESS_MS);
    try {
      await peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    } catch {
      if (!this.#closed) {
        throw new Refusal("rejected", "This browser cannot use the server's answer.");
      }
    }
  }

  /**
   * Sends another voice from now on.
   * @param {MediaStreamTrack} voice
   */
  async setVoice(voice) {
    this.#voice = voice;
    if (!this.#closed) {
      await this.#sender?.replaceTrack(voice);
    }
  }

  /**
   * Has a text said. Rejects with a Refusal.
   * @param {string} text
   * @param {string} eventId
   */
  async say(text, eventId) {
    if (this.#closed || this.#session === null) {
      throw new Refusal("offline", "There is no call that could say it.");
    }
    await this.#server.say(this.#session, text, eventId);
  }

  /** Silences pushed speech; the server allows that to the stream's owner only. */
  interrupt() {
    if (this.#events?.readyState === "open") {
      this.#events.send(JSON.stringify({ type: "agent.interrupt" }));
    }
  }

  /** The browser's own figures; null while there is no connection. */
  async report() {
    return this.#closed || this.#peer === null ? null : this.#peer.getStats();
  }

  /**
   * Ends the connection and frees its place on the server.
   * @param {boolean} [leaving] Whether the page is going away, and nothing can be waited for.
   */
  close(leaving = false) {
    this.#end("closed", "", leaving);
  }

  get #isView() {
    return this.#wish.mode === "view";
  }

  /** @param {RTCIceServer[]} iceServers Only the server's own: the defaults of others would be strangers. */
  #prepare(iceServers) {
    const peer = new RTCPeerConnection({ bundlePolicy: "max-bundle", iceServers });
    this.#peer = peer;
    peer.addEventListener("track", ({ track }) => this.#onTrack(track));
    peer.addEventListener("connectionstatechange", () => this.#onState(peer.connectionState));
    if (this.#voice === null) {
      peer.addTransceiver("audio", { direction: "recvonly" });
    } else {
      const streams = [new MediaStream([this.#voice])];
      this.#sender = peer.addTransceiver(this.#voice, { direction: "sendrecv", streams }).sender;
    }
    peer.addTransceiver("video", { direction: "recvonly" });
    const events = peer.createDataChannel("events");
    this.#events = events;
    events.addEventListener("message", (message) => this.#onMessage(message.data));
    if (!this.#isView) {
      // Servers of the standard alone have no such channel for their viewers.
      events.addEventListener("close", () => this.#end("lost"));
    }
    return peer;
  }

  /** @param {MediaStreamTrack} track */
  #onTrack(track) {
    this.#media.addTrack(track);
    if (track.kind === "video") {
      this.#emit("media", this.#media);
    }
  }

  /** @param {RTCPeerConnectionState} state */
  #onState(state) {
    if (state === "connected") {
      this.#connected = true;
      this.#lastMessageAt = performance.now();
      this.#emit("steady", true);
      if (this.#isView) {
        this.#emit("state", { state: "watching" });
      }
    } else if (state === "disconnected") {
      this.#emit("steady", false);
      this.#checkSession();
    } else if (state === "failed") {
      this.#end(this.#connected ? "lost" : "blocked");
    }
  }

  /** @param {unknown} text A message of the server. Ones that cannot be read are of a newer server, and left alone. */
  #onMessage(text) {
    this.#lastMessageAt = performance.now();
    const message = parsed(text);
    if (message?.type === "end") {
      this.#session = null; // the server has ended it itself
      this.#finishWith(outcomeOf(message, this.#isView));
    } else if (message?.type === "stats") {
      this.#lastStatsAt = this.#lastMessageAt;
      this.#emit("stats", message);
    } else if (message?.type === "state" && SERVER_STATES.includes(String(message.state))) {
      this.#emit("state", message);
    } else if (message?.type === "caption") {
      const caption = captionOf(message);
      if (caption !== null) {
        this.#emit("caption", caption);
      }
    } else if (message?.type === "recording") {
      this.#emit("recording", message.active === true);
    } else if (message !== null) {
      const report = reportOf(message);
      if (report !== null) {
        this.#emit("speech", report);
      }
    }
  }

  async #checkLiveness() {
    const now = performance.now();
    if (!this.#connected) {
      if (now - this.#openedAt > CONNECT_LIMIT_MS) {
        this.#end("blocked");
      }
      return;
    }
    if (this.#isView) {
      await this.#countPackets(now);
    }
    if (now - this.#lastMessageAt > QUIET_MS) {
      this.#checkSession();
    }
  }

  /**
   * A view may be told nothing, so its packets stand for the server's word.
   * @param {number} now
   */
  async #countPackets(now) {
    const rows = [...((await this.report())?.values() ?? [])];
    const received = rows.reduce((sum, row) => sum + (row.type === "inbound-rtp" ? (row.packetsReceived ?? 0) : 0), 0);
    if (received > this.#received) {
      this.#received = received;
      this.#lastMessageAt = now;
    }
    if (!this.#closed && now - this.#lastStatsAt > STATS_GAP_MS) {
      this.#lastStatsAt = now;
      this.#emit("stats", null);
    }
  }

  /** Asks a server that has fallen silent; ICE alone would take half a minute to notice that it is gone. */
  async #checkSession() {
    if (this.#checkingSession || this.#session === null) {
      return;
    }
    this.#checkingSession = true;
    try {
      if (!(await this.#server.has(this.#session))) {
        this.#end("lost");
      }
    } catch {
      this.#end("lost");
    } finally {
      this.#checkingSession = false;
    }
  }

  /**
   * @param {Outcome["kind"]} kind
   * @param {string} detail
   * @param {boolean} leaving
   */
  #end(kind, detail = "", leaving = false) {
    this.#finishWith({ kind, detail, retryAfterS: null }, leaving);
  }

  /**
   * @param {Outcome} outcome
   * @param {boolean} [leaving]
   */
  #finishWith(outcome, leaving = false) {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    clearInterval(this.#livenessTimer);
    this.#hangUp(leaving);
    this.#finish(outcome);
  }

  /**
   * Tells the server first and closes then: it would find the stream gone otherwise.
   * @param {boolean} leaving
   */
  async #hangUp(leaving) {
    const told = this.#session === null ? null : this.#server.hangUp(this.#session);
    if (!leaving) {
      await told;
    }
    this.#peer?.close();
  }

  /**
   * @param {string} name
   * @param {unknown} detail
   */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/**
 * @param {Record<string, unknown>} message Of the server.
 * @returns {SpeechReport | null} null for another message.
 */
export function reportOf({ type, event_id: eventId, detail }) {
  const step = { "agent.speak_started": "started", "agent.speak_ended": "ended", "agent.speak_interrupted": "interrupted" };
  const found = type === "error" ? "failed" : step[/** @type {keyof typeof step} */ (type)];
  if (found === undefined || typeof eventId !== "string") {
    return null;
  }
  return {
    step: /** @type {SpeechReport["step"]} */ (found),
    eventId,
    detail: typeof detail === "string" ? detail : "",
  };
}

/**
 * What the server's last message means.
 * @param {Record<string, unknown>} message Of the type "end".
 * @param {boolean} isView
 * @returns {Outcome}
 */
export function outcomeOf({ reason, reconnect, after_s: afterS }, isView) {
  const detail = typeof reason === "string" ? reason : "";
  if (reconnect === true) {
    const isNumber = typeof afterS === "number" && afterS >= 0;
    return { kind: "stopping", detail, retryAfterS: isNumber ? Math.min(afterS, MAX_RETRY_AFTER_S) : null };
  }
  // A view outlives the streams of its name: another may begin at any time.
  return isView ? { kind: "offline", detail, retryAfterS: 1 } : { kind: "ended", detail, retryAfterS: null };
}

/**
 * An offer with all candidates in it, so that one request suffices.
 * @param {RTCPeerConnection} peer
 * @returns {Promise<string>} Its SDP.
 */
async function completeOffer(peer) {
  await peer.setLocalDescription(await peer.createOffer());
  if (peer.iceGatheringState !== "complete") {
    await new Promise((resolve) => {
      // One dead network interface must not keep a call that the others can carry.
      const timer = setTimeout(resolve, GATHERING_LIMIT_MS);
      peer.addEventListener("icegatheringstatechange", () => {
        if (peer.iceGatheringState === "complete") {
          clearTimeout(timer);
          resolve(undefined);
        }
      });
    });
  }
  return peer.localDescription?.sdp ?? "";
}

/**
 * @param {unknown} text
 * @returns {Record<string, unknown> | null} The JSON object in a message; null if it is none.
 */
function parsed(text) {
  try {
    const content = JSON.parse(String(text));
    return typeof content === "object" ? content : null;
  } catch {
    return null;
  }
}
