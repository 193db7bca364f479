/**
 * A call, kept up until it is closed: waits for a server that is full or still starting, and reconnects
 * when the connection is lost. Speaks in events; knows nothing of the element or of microphones.
 */

import { Connection } from "./connection.js";
import { detailOf } from "./dom.js";
import { Refusal } from "./server.js";

/** @import { Outcome, Wish } from "./connection.js" */
/** @import { Server } from "./server.js" */

/**
 * @typedef {"new" | "connecting" | "idle" | "speaking" | "listening" | "behind" | "watching" | "waiting" | "closed"} CallState
 * connecting, idle, speaking, behind: as the server says. watching: a view is connected. waiting: between two attempts.
 */

/**
 * @typedef {object} Wait Why there is no connection at the moment, and when the next attempt comes.
 * @property {"full" | "limited" | "taken" | "offline" | "starting" | "stopping" | "unreachable" | "lost"
 *     | "blocked"} why
 * @property {string} detail The server's own sentence, or "".
 * @property {number | null} position In the queue of a full server, 1 for the first; null where it is not known.
 * @property {number} delayMs Until the next attempt.
 * @property {boolean} quiet Whether the delay is only a look at the server, not worth a countdown.
 * @property {boolean} reconnecting Whether the call has been up before.
 */

/**
 * @typedef {object} End Why the call is over for good.
 * @property {"closed" | "ended" | "rejected" | "unauthorized" | "gave-up"} why closed: by `close`. ended: by the
 *     server. rejected, unauthorized: the server will not have this call. gave-up: too many attempts failed.
 * @property {string} detail The server's own words, or "".
 * @property {Wait["why"] | null} last What the last attempt failed with, where it gave up.
 */

/** Seconds before the second, third, ... attempt; the last one holds for all further attempts. */
const BACK_OFF_S = Object.freeze([1, 2, 4, 8, 15]);
/** The first attempt after a loss follows at once, but not so fast that two ends of a fault meet. */
const FIRST_RETRY_S = 0.3;
/** Jitter: each delay is stretched by up to this share, so that clients of a restarted server do not retry at once. */
const JITTER = 0.25;
/** About two minutes. */
const MAX_FAILURES = 12;
/** What is no fault, but a matter of patience: how often it is looked at where the server does not say. */
const PATIENCE_S = Object.freeze({
  full: 10,
  limited: 10,
  taken: 5,
  offline: 3,
  /** A look costs a starting server next to nothing, so its Retry-After is not waited for. */
  starting: 1,
});

/** Least time between two attempts at a server whose queue admits a client and whose calls then refuse it. */
const QUEUE_LEAST_MS = 1_000;

/**
 * Events, all CustomEvents: "state" (CallState), "media" (the MediaStream to show, another one for each connection), "stats"
 * (StreamStatistics or null), "caption" (Caption), "speech" (SpeechReport), "recording" (whether the server records),
 * "wait" (Wait), "steady" (whether packets arrive at the moment), "end" (End), which is the last. One object is one call: make it, `start` it, `close` it.
 */
export class EchoCall extends EventTarget {
  /** @type {Server} */ #server;
  /** @type {Wish} */ #wish;
  /** @type {MediaStreamTrack | null} */ #voice = null;
  /** @type {Connection | null} */ #connection = null;
  /** @type {CallState} */ #state = "new";
  /** @type {() => void} Ends the present pause between attempts. */ #endPause = () => {};
  /** @type {AbortController | null} Leaves the queue of a full server. */ #queue = null;
  #online = () => this.retry();

  /**
   * @param {Server} server
   * @param {Wish} wish
   */
  constructor(server, wish) {
    super();
    this.#server = server;
    this.#wish = wish;
  }

  get state() {
    return this.#state;
  }

  /** Where the server keeps the present connection or its stream; null while there is none. */
  get session() {
    return this.#connection?.session ?? null;
  }

  /**
   * Begins the call and keeps it up until it ends.
   * @param {MediaStreamTrack | null} voice The caller's: it is never stopped here. null in a view.
   */
  start(voice) {
    if (this.#state !== "new") {
      throw new Error(`a call can be started once; this one is ${this.#state}`);
    }
    this.#voice = voice;
    globalThis.addEventListener("online", this.#online);
    this.#run().catch((error) => {
      reportError(error); // a fault of this module or browser, which the console should show
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

  /**
   * Has a text said by a call of the mode "text". Rejects with a Refusal.
   * @param {string} text
   * @param {string} eventId
   */
  async say(text, eventId) {
    if (this.#connection === null) {
      throw new Refusal("offline", "There is no call that could say it.");
    }
    await this.#connection.say(text, eventId);
  }

  /** Silences what is being said, where the stream is this caller's. */
  interrupt() {
    this.#connection?.interrupt();
  }

  /** Makes the next attempt now, if the call is waiting for it. */
  retry() {
    this.#endPause();
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

  async #run() {
    let failures = 0;
    let wasUp = false;
    let isRestarting = false;
    while (!this.#over) {
      this.#setState("connecting");
      const connection = new Connection(this.#server, this.#wish, this.#voice);
      const outcome = await this.#runConnection(connection);
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
      if (isRestarting && wait.why === "unreachable") {
        wait.why = "stopping"; // as it has announced
      }
      isRestarting = wait.why === "stopping";
      failures += wait.why in PATIENCE_S ? 0 : 1;
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
  async #runConnection(connection) {
    this.#connection = connection;
    connection.addEventListener("media", (event) => this.#emit("media", detailOf(event)));
    connection.addEventListener("state", (event) => this.#setState(detailOf(event).state));
    connection.addEventListener("stats", (event) => this.#emit("stats", detailOf(event)));
    connection.addEventListener("caption", (event) => this.#emit("caption", detailOf(event)));
    connection.addEventListener("recording", (event) => this.#emit("recording", detailOf(event)));
    connection.addEventListener("speech", (event) => this.#emit("speech", detailOf(event)));
    connection.addEventListener("steady", (event) => this.#emit("steady", detailOf(event)));
    try {
      await connection.open();
      this.#leaveQueue();
      return await connection.over;
    } catch (error) {
      if (error instanceof Refusal) {
        return error;
      }
      throw error;
    } finally {
      this.#leaveQueue();
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
    if (wait.why === "full") {
      await this.#waitInQueue(wait);
      return;
    }
    await this.#pause(wait.delayMs);
    while (wait.why === "starting" && !this.#over) {
      const refusal = await this.#checkReady();
      if (refusal === null || refusal.kind !== "starting") {
        return;
      }
      this.#emit("wait", { ...wait, detail: refusal.detail });
      await this.#pause(wait.delayMs);
    }
  }

  /**
   * Waits for the server's word that a place is free, or asks again after a while where it has no queue. The place in
   * the queue is kept until the next attempt has been answered.
   * @param {Wait} wait
   */
  async #waitInQueue(wait) {
    const startedMs = performance.now();
    let isQueued = false;
    const follow = async (/** @type {AbortSignal} */ signal) => {
      for await (const { position, free } of this.#server.places(signal)) {
        if (free) {
          setTimeout(() => this.#endPause(), Math.max(0, startedMs + QUEUE_LEAST_MS - performance.now()));
          return;
        }
        isQueued = true;
        this.#emit("wait", { ...wait, position, quiet: true });
      }
      isQueued = false;
    };
    this.#queue = new AbortController();
    follow(this.#queue.signal);
    let isOver = false;
    while (!isOver) {
      const hasElapsed = await this.#pause(wait.delayMs);
      isOver = !hasElapsed || !isQueued;
    }
  }

  #leaveQueue() {
    this.#queue?.abort();
    this.#queue = null;
  }

  /** @returns {Promise<Refusal | null>} Why no call could be opened at the moment; null if one could. */
  async #checkReady() {
    try {
      await this.#server.ready();
      return null;
    } catch (error) {
      return error instanceof Refusal ? error : new Refusal("unreachable");
    }
  }

  /**
   * @param {number} ms
   * @returns {Promise<boolean>} Whether the time has passed; false if the pause was ended.
   */
  async #pause(ms) {
    if (this.#over) {
      return false;
    }
    const hasElapsed = await new Promise((/** @type {(hasElapsed: boolean) => void} */ resolve) => {
      const timer = setTimeout(() => resolve(true), ms);
      this.#endPause = () => {
        clearTimeout(timer);
        resolve(false);
      };
    });
    this.#endPause = () => {};
    return hasElapsed;
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
    this.#leaveQueue();
    this.#endPause();
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

/** @param {number} delayS What the server asked all its clients to wait. */
function spread(delayS) {
  return delayS * (1 + JITTER * Math.random());
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
    case "unauthorized":
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
  const asked = outcome.retryAfterS;
  const delayS =
    why === "starting" ? PATIENCE_S.starting
    : why === "stopping" && asked !== null ? spread(asked)
    : why in PATIENCE_S ? (asked ?? PATIENCE_S[/** @type {keyof typeof PATIENCE_S} */ (why)])
    : wasConnected ? FIRST_RETRY_S
    : Math.max(asked ?? 0, backOffS(failures, Math.random()));
  const quiet = why === "starting" || why === "offline" || delayS < 1;
  return { why, detail: outcome.detail, position: null, delayMs: delayS * 1000, quiet };
}
