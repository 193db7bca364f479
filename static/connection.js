/**
 * One attempt at a call: one RTCPeerConnection from the offer to its end.
 *
 * Sends a voice's track, receives the avatar, reads the server's events, and finds out when it is over and why. Whether
 * there is another attempt is not its business, nor is where the voice comes from or where the avatar is shown.
 */

import { Refusal } from "./signalling.js";

/** @import { Server } from "./signalling.js" */

/**
 * @typedef {object} Outcome How a connection that had been answered ended.
 * @property {"closed" | "ended" | "lost" | "blocked"} kind closed: by us. ended: by the server, which said so.
 *     lost: the network or the server is gone. blocked: the answer came, but sound and picture never found a way.
 * @property {string} detail The server's reason where it gave one, else "".
 */

/**
 * @typedef {object} StreamStatistics What the server says of the stream, once a second.
 * @property {number} delay_ms
 * @property {number} fps
 * @property {number} rendered
 * @property {number} held
 * @property {number} dropped
 * @property {number} idle
 */

const STATES = ["connecting", "idle", "speaking", "behind"];
const GATHERING_LIMIT_MS = 3_000;
const CONNECT_LIMIT_MS = 15_000;
/** The server says something every second. Silent for this long, it is asked whether it still knows the stream. */
const QUIET_MS = 2_500;
const WATCH_EVERY_MS = 500;

/**
 * Events, all CustomEvents: "media" (the avatar's MediaStream, once, when it begins), "state" and "stats" (the server's
 * message), "steady" (whether packets arrive at the moment).
 */
export class Connection extends EventTarget {
  /** @type {Server} */ #server;
  /** @type {RTCPeerConnection} */ #peer;
  /** @type {RTCRtpSender} */ #sender;
  /** @type {string | null} */ #stream = null;
  /** @type {MediaStream} */ #media = new MediaStream();
  /** @type {(outcome: Outcome) => void} */ #finish = () => {};
  /** @type {Promise<Outcome>} */ #over;
  #closed = false;
  #connected = false;
  #openedAt = 0;
  #heardAt = 0;
  #asking = false;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #watch;

  /**
   * @param {Server} server
   * @param {MediaStreamTrack} voice
   */
  constructor(server, voice) {
    super();
    this.#server = server;
    this.#over = new Promise((resolve) => {
      this.#finish = resolve;
    });
    // No ICE servers: the defaults of others are strangers, and on one network none is needed.
    this.#peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    const streams = [new MediaStream([voice])];
    this.#sender = this.#peer.addTransceiver(voice, { direction: "sendrecv", streams }).sender;
    this.#peer.addTransceiver("video", { direction: "recvonly" });
    const events = this.#peer.createDataChannel("events");
    events.addEventListener("message", (message) => this.#hear(message.data));
    events.addEventListener("close", () => this.#end("lost"));
    this.#peer.addEventListener("track", ({ track }) => this.#onTrack(track));
    this.#peer.addEventListener("connectionstatechange", () => this.#onState());
  }

  /** Whether sound and picture have ever had a way. */
  get connected() {
    return this.#connected;
  }

  /** Resolves when the connection is over. */
  get over() {
    return this.#over;
  }

  /**
   * Makes the offer and takes the answer. Rejects with a Refusal if the server will not.
   * @param {string | null} avatar
   */
  async open(avatar) {
    const offer = await this.#offer();
    if (this.#closed) {
      return;
    }
    const answer = await this.#server.offer(offer, avatar);
    if (this.#closed) {
      this.#server.hangUp(answer.stream);
      return;
    }
    this.#stream = answer.stream;
    this.#openedAt = this.#heardAt = performance.now();
    this.#watch = setInterval(() => this.#look(), WATCH_EVERY_MS);
    try {
      await this.#peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
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
    if (!this.#closed) {
      await this.#sender.replaceTrack(voice);
    }
  }

  /** The browser's own figures; null once the connection is over. */
  async report() {
    return this.#closed ? null : this.#peer.getStats();
  }

  /**
   * Ends the connection and frees its place on the server.
   * @param {boolean} [leaving] Whether the page is going away, and nothing can be waited for.
   */
  close(leaving = false) {
    this.#end("closed", "", leaving);
  }

  /** The offer with all candidates in it: the server does not take later ones. */
  async #offer() {
    await this.#peer.setLocalDescription(await this.#peer.createOffer());
    if (this.#peer.iceGatheringState !== "complete") {
      await new Promise((resolve) => {
        // One dead network interface must not keep a call that the others can carry.
        const timer = setTimeout(resolve, GATHERING_LIMIT_MS);
        this.#peer.addEventListener("icegatheringstatechange", () => {
          if (this.#peer.iceGatheringState === "complete") {
            clearTimeout(timer);
            resolve(undefined);
          }
        });
      });
    }
    return this.#peer.localDescription?.sdp ?? "";
  }

  /** @param {MediaStreamTrack} track */
  #onTrack(track) {
    this.#media.addTrack(track);
    if (track.kind === "video") {
      this.#emit("media", this.#media);
    }
  }

  #onState() {
    const state = this.#peer.connectionState;
    if (state === "connected") {
      this.#connected = true;
      this.#emit("steady", true);
    } else if (state === "disconnected") {
      this.#emit("steady", false);
      this.#ask();
    } else if (state === "failed") {
      this.#end(this.#connected ? "lost" : "blocked");
    }
  }

  /** @param {unknown} text A message of the server. Ones that cannot be read are of a newer server, and left alone. */
  #hear(text) {
    this.#heardAt = performance.now();
    const message = parsed(text);
    if (message?.type === "end") {
      this.#end("ended", typeof message.reason === "string" ? message.reason : "");
    } else if (message?.type === "stats" || (message?.type === "state" && STATES.includes(String(message.state)))) {
      this.#emit(message.type, message);
    }
  }

  #look() {
    const now = performance.now();
    if (!this.#connected) {
      if (now - this.#openedAt > CONNECT_LIMIT_MS) {
        this.#end("blocked");
      }
    } else if (now - this.#heardAt > QUIET_MS) {
      this.#ask();
    }
  }

  /** Asks a server that has fallen silent; ICE alone would take half a minute to notice that it is gone. */
  async #ask() {
    if (this.#asking || this.#stream === null) {
      return;
    }
    this.#asking = true;
    try {
      if (!(await this.#server.has(this.#stream))) {
        this.#end("lost");
      }
    } catch {
      this.#end("lost");
    } finally {
      this.#asking = false;
    }
  }

  /**
   * @param {Outcome["kind"]} kind
   * @param {string} detail
   * @param {boolean} leaving
   */
  #end(kind, detail = "", leaving = false) {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    clearInterval(this.#watch);
    this.#hangUp(kind, leaving);
    this.#finish({ kind, detail });
  }

  /**
   * Tells the server first and closes then: it would find the stream gone otherwise.
   * @param {Outcome["kind"]} kind
   * @param {boolean} leaving
   */
  async #hangUp(kind, leaving) {
    const told = this.#stream === null || kind === "ended" ? null : this.#server.hangUp(this.#stream);
    if (!leaving) {
      await told;
    }
    this.#peer.close();
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
