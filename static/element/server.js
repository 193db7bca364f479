/**
 * The server's HTTP side. Turns every way in which the server can refuse, or not answer at all, into a `Refusal`. Knows
 * nothing of WebRTC.
 */

/**
 * @typedef {"full" | "limited" | "taken" | "offline" | "starting" | "stopping" | "unreachable" | "unauthorized"
 *     | "rejected"} RefusalKind
 * full: no place free. limited: asked too often. taken: the name belongs to another. offline: no stream is live under the
 * name. starting, stopping: not ready yet, or no longer. unreachable: no answer that could be read. unauthorized: the
 * token is missing or not enough. rejected: the server understood and will not, and asking again would not change that.
 */

/**
 * @typedef {object} Configuration
 * @property {number} width Of the picture, in pixels.
 * @property {number} height
 * @property {number} fps
 * @property {string[]} avatars Empty until the engine has started.
 * @property {string} engine
 * @property {string} status "starting", "ready" or "stopping".
 * @property {string[]} [notices] What users should know of the speed, each a sentence.
 * @property {boolean} [speak_text] Whether the server says text.
 * @property {boolean} [mark] Whether the picture is to be marked as AI-generated: true unless it is false.
 * @property {RTCIceServer[]} [ice_servers]
 */

/** @typedef {{ name: string, preview: string }} Avatar preview: address of a picture of it. */

/** @typedef {{ position: number, free: boolean }} Place position: in the queue, 1 for the first. free: call now. */

/**
 * @typedef {object} Answer
 * @property {string} sdp
 * @property {string} session The address at which the server keeps what was opened: DELETE ends it.
 */

/** Characters of one server-sent event. */
const MAX_EVENT = 10_000;
const ANSWER_TIMEOUT_MS = 20_000;
const QUERY_TIMEOUT_MS = 4_000;

/** @type {Readonly<Record<string, RefusalKind>>} The server's problem types that mean something of their own here. */
const KINDS = Object.freeze({
  "urn:echo-rtc:problem:full": "full",
  "urn:echo-rtc:problem:starting": "starting",
  "urn:echo-rtc:problem:stopping": "stopping",
});

/** @type {Readonly<Record<number, RefusalKind>>} */
const STATUSES = Object.freeze({ 401: "unauthorized", 403: "unauthorized", 409: "taken", 429: "limited" });

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

/** A server at one address, spoken to with one token. */
export class Server {
  /** @type {string} */ #base;
  /** @type {Record<string, string>} */ #headers;

  /**
   * @param {string} base For example "https://avatar.example".
   * @param {string} [token] Bearer; "" for none.
   */
  constructor(base, token = "") {
    this.#base = base.replace(/\/+$/, "");
    this.#headers = token === "" ? {} : { Authorization: `Bearer ${token}` };
  }

  /**
   * What the server shows.
   * @returns {Promise<Configuration>}
   */
  async configuration() {
    const content = await contentOf(await this.#fetch("/config", {}, QUERY_TIMEOUT_MS));
    return /** @type {Configuration} */ (/** @type {unknown} */ (content));
  }

  /**
   * The avatars that a call can have, the server's first one first; none where it asks for a token first.
   * @returns {Promise<Avatar[]>}
   */
  async avatars() {
    const response = await this.#fetch("/avatars", {}, QUERY_TIMEOUT_MS);
    if (STATUSES[response.status] === "unauthorized") {
      return [];
    }
    const content = await contentOf(response);
    if (!Array.isArray(content)) {
      throw new Refusal("unreachable", "The answer is not one of an echo_rtc server.");
    }
    return Promise.all(content.map(async ({ name, preview }) => ({ name, preview: await this.#picture(preview) })));
  }

  /**
   * @param {string} path Of a picture on the server.
   * @returns {Promise<string>} An address at which a page can show it; "" if it cannot be had. Pictures are loaded
   *     without headers, so where there is a token the address holds the picture itself.
   */
  async #picture(path) {
    const address = addressBelow(path, this.#base, this.#base) ?? "";
    if (this.#headers.Authorization === undefined) {
      return address;
    }
    try {
      const response = await this.#fetch(address, {}, QUERY_TIMEOUT_MS);
      return response.ok ? await dataUrlOf(await response.blob()) : "";
    } catch {
      return "";
    }
  }

  /** Resolves if a call could be opened now; rejects with the Refusal that says why not. */
  async ready() {
    await contentOf(await this.#fetch("/readyz", {}, QUERY_TIMEOUT_MS));
  }

  /**
   * The caller's place in the queue of a full server, whenever it changes. Ends with the server's answer, which is empty
   * where the server has no queue; never rejects.
   * @param {AbortSignal} signal Leaves the queue.
   * @returns {AsyncGenerator<Place>}
   */
  async *places(signal) {
    const headers = { ...this.#headers, Accept: "text/event-stream" };
    try {
      const response = await fetch(`${this.#base}/places`, { cache: "no-store", headers, signal });
      if (response.ok && response.body !== null) {
        yield* placesIn(response.body.pipeThrough(new TextDecoderStream()).getReader());
      }
    } catch {
      // Left, or the connection is gone: without a queue the call asks again by itself.
    }
  }

  /**
   * Opens a call. An empty `avatar` leaves the choice to the server, an empty `name` the stream without one. In the mode
   * "text" the offer has no microphone, and the avatar says what is pushed to its stream.
   * @param {string} sdp
   * @param {{ avatar: string, name: string, mode: string }} wish
   * @returns {Promise<Answer>}
   */
  async call(sdp, { avatar, name, mode }) {
    const source = mode === "text" && { source: "pushed" };
    const body = JSON.stringify({ sdp, type: "offer", ...(avatar && { avatar }), ...(name && { name }), ...source });
    const headers = { "Content-Type": "application/json" };
    const answer = await contentOf(await this.#fetch("/offer", { method: "POST", headers, body }, ANSWER_TIMEOUT_MS));
    if (typeof answer.sdp !== "string" || typeof answer.stream !== "string") {
      throw new Refusal("unreachable", "The answer is not one of an echo_rtc server.");
    }
    return { sdp: answer.sdp, session: `${this.#base}/streams/${encodeURIComponent(answer.stream)}` };
  }

  /**
   * Has a text said by the stream of a call that was opened for that.
   * @param {string} session
   * @param {string} text
   * @param {string} eventId
   */
  async say(session, text, eventId) {
    const headers = { "Content-Type": "application/json" };
    const request = { method: "POST", headers, body: JSON.stringify({ text, event_id: eventId }) };
    await contentOf(await this.#fetch(`${session}/speak`, request, ANSWER_TIMEOUT_MS));
  }

  /**
   * Joins the viewers of the stream of that name (WHEP).
   * @param {string} sdp
   * @param {string} name
   * @returns {Promise<Answer>}
   */
  async view(sdp, name) {
    const headers = { "Content-Type": "application/sdp" };
    const request = { method: "POST", headers, body: sdp };
    const response = await this.#fetch(`/whep/${encodeURIComponent(name)}`, request, ANSWER_TIMEOUT_MS);
    if (response.status !== 201) {
      const refusal = await refused(response);
      const isOffline = response.status === 404 || response.status === 409;
      throw isOffline ? new Refusal("offline", refusal.detail, refusal.retryAfterS) : refusal;
    }
    const session = addressBelow(response.headers.get("Location") ?? "", response.url, this.#base);
    if (session === null) {
      throw new Refusal("rejected", "The server names a session at another address, which gets no token.");
    }
    return { sdp: await response.text(), session };
  }

  /**
   * Whether the server still has a session. An unreachable server rejects with a Refusal.
   * @param {string} session
   * @returns {Promise<boolean>}
   */
  async has(session) {
    return (await this.#fetch(session, {}, QUERY_TIMEOUT_MS)).ok;
  }

  /**
   * Ends a session, also while the page is going away. Resolves when the server has answered, whatever it says: a
   * session or a server that is gone already is as good.
   * @param {string} session
   */
  async hangUp(session) {
    await this.#fetch(session, { method: "DELETE", keepalive: true }, QUERY_TIMEOUT_MS).catch(() => {});
  }

  /**
   * @param {string} address A path below the base, or a whole URL of this server.
   * @param {RequestInit & { headers?: Record<string, string> }} request
   * @param {number} timeoutMs
   */
  async #fetch(address, request, timeoutMs) {
    const url = address.startsWith("/") ? this.#base + address : address;
    const headers = { ...this.#headers, ...request.headers };
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), timeoutMs);
    try {
      return await fetch(url, { cache: "no-store", ...request, headers, signal: controller.signal });
    } catch {
      throw new Refusal("unreachable");
    } finally {
      clearTimeout(timer);
    }
  }
}

/**
 * Reads server-sent events.
 * @param {ReadableStreamDefaultReader<string>} reader
 * @returns {AsyncGenerator<Place>}
 */
async function* placesIn(reader) {
  let text = "";
  for (let part = await reader.read(); !part.done && text.length < MAX_EVENT; part = await reader.read()) {
    const events = (text + part.value).split(/\r?\n\r?\n/);
    text = events.pop() ?? "";
    for (const event of events) {
      const data = /^data: ?(.*)$/m.exec(event)?.[1];
      if (data !== undefined) {
        const { position, free } = JSON.parse(data);
        yield { position: Number(position), free: Boolean(free) };
      }
    }
  }
}

/**
 * The JSON object or list in an answer. Rejects with a Refusal where there is none.
 * @param {Response} response
 * @returns {Promise<Record<string, unknown>>}
 */
async function contentOf(response) {
  const body = response.ok ? await response.json().catch(() => null) : null;
  if (typeof body !== "object" || body === null) {
    throw await refused(response);
  }
  return body;
}

/** @param {Response} response */
async function refused(response) {
  const problem = response.bodyUsed ? null : await response.json().catch(() => null);
  return refusalOf(response.status, problem ?? {}, response.headers.get("Retry-After"));
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
  const kind = named ?? STATUSES[status] ?? (status >= 500 || status < 400 ? "unreachable" : "rejected");
  return new Refusal(kind, detail, secondsOf(retryAfter, Date.now()));
}

/**
 * An address that the server names. Where a reverse proxy serves it below a path, the server may not know that path.
 * @param {string} named For example a Location header.
 * @param {string} asked The address that was asked.
 * @param {string} base The server's.
 * @returns {string | null} null where it is of another origin.
 */
export function addressBelow(named, asked, base) {
  const address = new URL(named, asked);
  const { origin, pathname } = new URL(`${base}/`);
  if (address.origin !== new URL(asked).origin) {
    return null;
  }
  if (address.origin === origin && !address.pathname.startsWith(pathname)) {
    address.pathname = pathname.slice(0, -1) + address.pathname;
  }
  return address.href;
}

/**
 * @param {Blob} blob
 * @returns {Promise<string>}
 */
function dataUrlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
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
