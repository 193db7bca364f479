/**
 * A call to an avatar: a voice goes out, its face comes back, for as long as somebody wants it.
 *
 * Keeps the call up: waits for a server that is full or still starting, and connects anew when the connection is lost.
 * Speaks in events; knows nothing of the page, of microphones, or of where the avatar is shown. One object is one call:
 * make it, `start` it, `close` it.
 */

import { Connection } from "./connection.js";
import { Refusal, Server } from "./signalling.js";

/** @import { Outcome } from "./connection.js" */

/**
 * @typedef {"new" | "connecting" | "idle" | "speaking" | "behind" | "waiting" | "closed"} CallState
 * connecting, idle, speaking, behind: as the server says. waiting: between two attempts.
 */

/**
 * @typedef {object} Wait Why there is no connection at the moment, and when the next attempt comes.
 * @property {"full" | "starting" | "stopping" | "unreachable" | "lost" | "blocked"} why
 * @property {string} detail The server's own sentence, or "".
 * @property {number} delayMs Until the next attempt.
 * @property {boolean} quiet Whether the delay is only a look at the server, not worth a countdown.
 * @property {boolean} reconnecting Whether the call has been up before.
 */

/**
 * @typedef {object} End Why the call is over for good.
 * @property {"closed" | "ended" | "rejected" | "gave-up"} why closed: by `close`. ended: by the server. rejected: the
 *     server will not have this call. gave-up: too many attempts failed.
 * @property {string} detail The server's own words, or "".
 * @property {Wait["why"] | null} last What the last attempt failed with, where it gave up.
 */

/**
 * @typedef {object} CallOptions
 * @property {string} server Origin of the server.
 * @property {string | null} [avatar] Its name; null for the server's first.
 */

/** Seconds before the second, third, ... attempt; the last one holds for all further attempts. */
const BACK_OFF_S = Object.freeze([1, 2, 4, 8, 15]);
/** The first attempt after a loss follows at once, but not so fast that two ends of a fault meet. */
const FIRST_RETRY_S = 0.3;
/** Each delay is stretched by up to this share, so that a restarted server is not asked by everybody at once. */
const JITTER = 0.25;
/** About two minutes. */
const MAX_FAILURES = 12;
const FULL_RETRY_S = 10;
/** A server that is starting is looked at this often, which costs it next to nothing, whatever its Retry-After says. */
const STARTING_LOOK_S = 1;

/**
 * Events, all CustomEvents: "state" (CallState), "media" (the MediaStream to show, anew for each connection), "stats"
 * (StreamStatistics), "wait" (Wait), "steady" (whether packets arrive at the moment), "end" (End), which is the last.
 */
export class EchoCall extends EventTarget {
  /** @type {Server} */ #server;
  /** @type {string | null} */ #avatar;
  /** @type {MediaStreamTrack | null} */ #voice = null;
  /** @type {Connection | null} */ #connection = null;
  /** @type {CallState} */ #state = "new";
  /** @type {() => void} Ends the present pause between attempts. */ #wake = () => {};
  #online = () => this.retry();

  /** @param {CallOptions} options */
  constructor({ server, avatar = null }) {
    super();
    this.#server = new Server(server);
    this.#avatar = avatar;
  }

  get state() {
    return this.#state;
  }

  /**
   * Begins the call with the given voice and keeps it up until it ends.
   * @param {MediaStreamTrack} voice The caller's: it is never stopped here.
   */
  start(voice) {
    if (this.#state !== "new") {
      throw new Error(`a call can be started once; this one is ${this.#state}`);
    }
    this.#voice = voice;
    globalThis.addEventListener("online", this.#online);
    this.#run(voice).catch((error) => {
      reportError(error); // a fault of this page or browser, which the console should show
      this.#finish({ why: "gave-up", detail: String(error), last: null });
    });
  }

  /**
   * Sends another voice from now on, without an interruption of the call.
   * @param {MediaStreamTrack} voice
   */
  async setVoice(voice) {
    this.#voice = voice;
    await this.#connection?.setVoice(voice);
  }

  /** Makes the next attempt now, if the call is waiting for it. */
  retry() {
    this.#wake();
  }

  /** The browser's own figures of the present connection; null while there is none. */
  async report() {
    return this.#connection?.report() ?? null;
  }

  /**
   * Ends the call and frees its place on the server.
   * @param {boolean} [leaving] Whether the page is going away, and nothing can be waited for.
   */
  close(leaving = false) {
    this.#connection?.close(leaving);
    this.#finish({ why: "closed", detail: "", last: null });
  }

  /** @param {MediaStreamTrack} voice */
  async #run(voice) {
    let failures = 0;
    let wasUp = false;
    while (!this.#over) {
      this.#setState("connecting");
      const connection = new Connection(this.#server, this.#voice ?? voice);
      const outcome = await this.#live(connection);
      if (connection.connected) {
        failures = 0;
        wasUp = true;
      }
      const end = endOf(outcome);
      if (end !== null) {
        this.#finish(end);
        return;
      }
      const wait = { ...waitAfter(outcome, failures, connection.connected), reconnecting: wasUp };
      // A full server is no fault: its place may become free at any time.
      failures += wait.why === "full" || wait.why === "starting" ? 0 : 1;
      if (failures > MAX_FAILURES) {
        this.#finish({ why: "gave-up", detail: wait.detail, last: wait.why });
        return;
      }
      await this.#waitFor(wait);
    }
  }

  /**
   * One connection from offer to end.
   * @param {Connection} connection
   * @returns {Promise<Outcome | Refusal>}
   */
  async #live(connection) {
    this.#connection = connection;
    connection.addEventListener("media", (event) => this.#emit("media", detailOf(event)));
    connection.addEventListener("state", (event) => this.#setState(detailOf(event).state));
    connection.addEventListener("stats", (event) => this.#emit("stats", detailOf(event)));
    connection.addEventListener("steady", (event) => this.#emit("steady", detailOf(event)));
    try {
      await connection.open(this.#avatar);
      return await connection.over;
    } catch (error) {
      if (error instanceof Refusal) {
        return error;
      }
      throw error;
    } finally {
      connection.close();
      this.#connection = null;
    }
  }

  /** @param {Wait} wait */
  async #waitFor(wait) {
    if (this.#over) {
      return;
    }
    this.#setState("waiting");
    this.#emit("wait", wait);
    await this.#pause(wait.delayMs);
    while (wait.why === "starting" && !this.#over) {
      const refusal = await this.#look();
      if (refusal === null || refusal.kind !== "starting") {
        return;
      }
      this.#emit("wait", { ...wait, detail: refusal.detail });
      await this.#pause(wait.delayMs);
    }
  }

  /** @returns {Promise<Refusal | null>} Why no call could be opened at the moment; null if one could. */
  async #look() {
    try {
      await this.#server.ready();
      return null;
    } catch (error) {
      return error instanceof Refusal ? error : new Refusal("unreachable");
    }
  }

  /** @param {number} ms */
  async #pause(ms) {
    if (this.#over) {
      return;
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    });
    this.#wake = () => {};
  }

  get #over() {
    return this.#state === "closed";
  }

  /** @param {CallState} state */
  #setState(state) {
    if (!this.#over && state !== this.#state) {
      this.#state = state;
      this.#emit("state", state);
    }
  }

  /** @param {End} end */
  #finish(end) {
    if (this.#over) {
      return;
    }
    this.#setState("closed");
    globalThis.removeEventListener("online", this.#online);
    this.#wake();
    this.#emit("end", end);
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
 * The delay before the next attempt after so many failures in a row, in seconds.
 * @param {number} failures
 * @param {number} chance Uniform in 0..1.
 */
export function backOffS(failures, chance) {
  return (BACK_OFF_S[Math.min(failures, BACK_OFF_S.length - 1)] ?? 0) * (1 + JITTER * chance);
}

/**
 * @param {Outcome | Refusal} outcome
 * @returns {End | null} The end of the call, where this outcome is one.
 */
function endOf(outcome) {
  switch (outcome.kind) {
    case "closed":
    case "ended":
    case "rejected":
      return { why: outcome.kind, detail: outcome.detail, last: null };
    default:
      return null;
  }
}

/**
 * @param {Outcome | Refusal} outcome One that is no end.
 * @param {number} failures Before this one.
 * @param {boolean} wasConnected This very connection.
 * @returns {Omit<Wait, "reconnecting">}
 */
function waitAfter(outcome, failures, wasConnected) {
  const why = /** @type {Wait["why"]} */ (outcome.kind);
  const asked = outcome instanceof Refusal ? outcome.retryAfterS : null;
  const delayS =
    why === "starting" ? STARTING_LOOK_S
    : why === "full" ? (asked ?? FULL_RETRY_S)
    : wasConnected ? FIRST_RETRY_S
    : Math.max(asked ?? 0, backOffS(failures, Math.random()));
  const quiet = why === "starting" || delayS < 1;
  return { why, detail: outcome.detail, delayMs: delayS * 1000, quiet };
}

/** @param {Event} event */
function detailOf(event) {
  return /** @type {CustomEvent} */ (event).detail;
}
