/**
 * The server's HTTP side as a page needs it: its configuration, offers, and the end of a stream.
 *
 * Turns every way in which the server can say no, or not answer at all, into a `Refusal`. Knows nothing of WebRTC.
 */

/**
 * @typedef {"full" | "starting" | "stopping" | "unreachable" | "rejected"} RefusalKind
 * full: no place free. starting, stopping: not ready yet, or no longer. unreachable: no answer that could be read.
 * rejected: the server understood and will not, and asking again would not change that.
 */

/**
 * @typedef {object} Configuration
 * @property {number} width Of the picture, in pixels.
 * @property {number} height
 * @property {number} fps
 * @property {string[]} avatars Empty until the engine has started.
 * @property {string} engine
 * @property {string} status "starting", "ready" or "stopping".
 */

/**
 * @typedef {object} Answer
 * @property {string} sdp
 * @property {string} stream The id under which the server knows the call.
 */

const ANSWER_TIMEOUT_MS = 20_000;
const LOOK_TIMEOUT_MS = 4_000;

/** @type {Readonly<Record<string, RefusalKind>>} The server's problem types that mean something of their own here. */
const KINDS = Object.freeze({
  "urn:echo-rtc:problem:full": "full",
  "urn:echo-rtc:problem:starting": "starting",
  "urn:echo-rtc:problem:stopping": "stopping",
});

/** The server's no, in its own words where it gave some. */
export class Refusal extends Error {
  /**
   * @param {RefusalKind} kind
   * @param {string} detail A sentence, or "" where the server gave none.
   * @param {number | null} retryAfterS When the server wants to be asked again.
   */
  constructor(kind, detail = "", retryAfterS = null) {
    super(detail || kind);
    this.name = "Refusal";
    /** @readonly */ this.kind = kind;
    /** @readonly */ this.detail = detail;
    /** @readonly */ this.retryAfterS = retryAfterS;
  }
}

/** A server at one address. */
export class Server {
  /** @type {string} */ #base;

  /** @param {string} base Its origin, for example "https://avatar.example". */
  constructor(base) {
    this.#base = base;
  }

  /**
   * What the server shows.
   * @returns {Promise<Configuration>}
   */
  async configuration() {
    return /** @type {Configuration} */ (await this.#json("/config", {}, LOOK_TIMEOUT_MS));
  }

  /** Resolves if a call could be opened now; rejects with the Refusal that says why not. */
  async ready() {
    await this.#json("/readyz", {}, LOOK_TIMEOUT_MS);
  }

  /**
   * Opens a call. `avatar` null leaves the choice to the server.
   * @param {string} sdp
   * @param {string | null} avatar
   * @returns {Promise<Answer>}
   */
  async offer(sdp, avatar) {
    const body = JSON.stringify({ sdp, type: "offer", ...(avatar === null ? {} : { avatar }) });
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const answer = await this.#json("/offer", request, ANSWER_TIMEOUT_MS);
    if (typeof answer.sdp !== "string" || typeof answer.stream !== "string") {
      throw new Refusal("unreachable", "The answer is not one of an echo_rtc server.");
    }
    return { sdp: answer.sdp, stream: answer.stream };
  }

  /**
   * Whether the server still has the stream. An unreachable server rejects with a Refusal.
   * @param {string} stream
   * @returns {Promise<boolean>}
   */
  async has(stream) {
    const response = await this.#fetch(this.#streamPath(stream), {}, LOOK_TIMEOUT_MS);
    return response.ok;
  }

  /**
   * Ends a stream, also while the page is going away. Resolves when the server has answered, whatever it says: a stream
   * or a server that is gone already is as good.
   * @param {string} stream
   */
  async hangUp(stream) {
    await this.#fetch(this.#streamPath(stream), { method: "DELETE", keepalive: true }, LOOK_TIMEOUT_MS).catch(() => {});
  }

  /** @param {string} stream */
  #streamPath(stream) {
    return `/streams/${encodeURIComponent(stream)}`;
  }

  /**
   * @param {string} path
   * @param {RequestInit} request
   * @param {number} timeoutMs
   * @returns {Promise<Record<string, unknown>>}
   */
  async #json(path, request, timeoutMs) {
    const response = await this.#fetch(path, request, timeoutMs);
    const body = await response.json().catch(() => null);
    const content = /** @type {Record<string, unknown>} */ (typeof body === "object" && body !== null ? body : {});
    if (response.ok && body !== null) {
      return content;
    }
    throw refusalOf(response.status, content, response.headers.get("Retry-After"));
  }

  /**
   * @param {string} path
   * @param {RequestInit} request
   * @param {number} timeoutMs
   */
  async #fetch(path, request, timeoutMs) {
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), timeoutMs);
    try {
      return await fetch(this.#base + path, { cache: "no-store", ...request, signal: controller.signal });
    } catch {
      throw new Refusal("unreachable");
    } finally {
      clearTimeout(timer);
    }
  }
}

/**
 * The Refusal that an HTTP answer means.
 * @param {number} status
 * @param {Record<string, unknown>} problem The body, of RFC 9457's form or {}.
 * @param {string | null} retryAfter The header.
 * @returns {Refusal}
 */
export function refusalOf(status, problem, retryAfter) {
  const detail = typeof problem.detail === "string" ? problem.detail : "";
  const named = typeof problem.type === "string" ? KINDS[problem.type] : undefined;
  // Without a type of ours, a 5xx comes from something in between, such as a proxy whose server is being restarted.
  const kind = named ?? (status >= 500 || status < 400 ? "unreachable" : "rejected");
  return new Refusal(kind, detail, secondsOf(retryAfter, Date.now()));
}

/**
 * Reads a Retry-After header, which is a number of seconds or a date (RFC 9110, 10.2.3).
 * @param {string | null} header
 * @param {number} nowMs
 * @returns {number | null} Seconds from now; null where there is nothing to read.
 */
export function secondsOf(header, nowMs) {
  if (header === null || header.trim() === "") {
    return null;
  }
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - nowMs) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}
