/**
 * <echo-rtc>: a voice's talking face, in any page.
 *
 *     <script type="module" src="https://avatar.example/echo-rtc.js"></script>
 *     <echo-rtc controls></echo-rtc>
 *
 * One module without dependencies, from the bottom up: what is said to visitors, the server's HTTP side, one
 * connection, a call that outlives connections, the voices, the figures, the looks, and the element that brings them
 * together. README.md has its attributes, methods, events, parts and custom properties.
 */

// ---------------------------------------------------------------------------------------------------------- the words
// Every state and every trouble in words that tell a visitor what is and what to do. Text only.

/**
 * @typedef {"start" | "microphone" | "sample" | "retry" | "stop" | "play"} ActionName
 * start: with the voice that is chosen; microphone, sample: with that one, in the call there is or in a new one.
 */

/** @typedef {{ name: ActionName, label: string }} Action */

/** @typedef {"call" | "view"} Mode call: a voice goes out, its avatar comes back. view: somebody else's avatar. */

/** @typedef {"microphone" | "sample" | "track"} Source Where the voice comes from; track: from the page around. */

/**
 * @typedef {object} Notice What lies over the stage while no picture plays there.
 * @property {string} [code] Of a trouble: the "error" event's.
 * @property {keyof typeof ICONS} icon
 * @property {"calm" | "busy" | "warning"} tone
 * @property {string} title
 * @property {string} text
 * @property {string} [hint] A further, quieter sentence.
 * @property {Action[]} actions The first is the one to take.
 */

/** @type {Action} */ const AGAIN = { name: "start", label: "Try again" };
/** @type {Action} */ const SAMPLE = { name: "sample", label: "Use the sample voice" };
/** @type {Action} */ const MICROPHONE = { name: "microphone", label: "Use the microphone" };
/** @type {Action} */ const NOW = { name: "retry", label: "Try now" };
/** @type {Action} */ const CANCEL = { name: "stop", label: "Cancel" };

/** @type {Readonly<Record<CallState, { word: string, caption: string }>>} */
const STATE_WORDS = Object.freeze({
  new: { word: "Ready", caption: "Nothing is sent before you start" },
  connecting: { word: "Connecting", caption: "Opening the line to the avatar" },
  idle: { word: "Idle", caption: "Waiting for a voice" },
  speaking: { word: "Speaking", caption: "The avatar is saying your words" },
  behind: { word: "Behind", caption: "Rendering is late: the picture is held, the sound goes on" },
  watching: { word: "Live", caption: "You see and hear somebody's avatar" },
  waiting: { word: "Waiting", caption: "There is no connection at the moment" },
  closed: { word: "Ended", caption: "Nothing is sent any more" },
});

/** Short lines over the running picture. */
const BANNERS = Object.freeze({
  unsteady: "The connection is unsteady",
  micMoved: "The microphone is gone; another one took over",
  micLost: "The microphone is gone. Plug it in, or choose another voice",
  voiceFailed: "That voice cannot be used; the one before goes on",
});

/** What a screen reader is told beyond the notices. */
const ANNOUNCEMENTS = Object.freeze({
  calling: "Connected. The avatar speaks with your voice.",
  watching: "Connected. The avatar is live.",
  stopped: "The call has ended.",
  muted: "Muted: the avatar hears silence.",
  unmuted: "No longer muted.",
  behind: "The picture is late; the sound goes on.",
});

/** @param {CallState} state */
export function stateWords(state) {
  return STATE_WORDS[state];
}

/** What the element says over its stage. `hasSample`: whether there is a sample voice to offer. */
export class Words {
  /** @type {boolean} */ #hasSample;

  /** @param {boolean} hasSample */
  constructor(hasSample) {
    this.#hasSample = hasSample;
  }

  /**
   * Before a call.
   * @param {Mode} mode
   * @param {Source} source The voice that is chosen.
   * @param {string | null} starting What the server says while it is starting; null once it has started.
   * @returns {Notice}
   */
  welcome(mode, source, starting) {
    const actions = mode === "view" ? [action("start", "Watch")] : this.#voices(source);
    if (starting !== null) {
      return { ...loading(starting), text: "You can start already: the call then begins by itself.", actions };
    }
    if (mode === "view") {
      return {
        icon: "play",
        tone: "calm",
        title: "Watch the avatar",
        text: "Picture and sound begin with a tap.",
        actions,
      };
    }
    return {
      icon: "mark",
      tone: "calm",
      title: "Give your voice a face",
      text: "Speak, and the avatar says it with you: your own words, in sync, a moment later.",
      hint: "Headphones are best, so that the avatar does not hear itself.",
      actions,
    };
  }

  /**
   * While the browser asks for the microphone.
   * @returns {Notice}
   */
  asking() {
    return {
      icon: "mic",
      tone: "busy",
      title: "May this page hear you?",
      text: "Your browser asks for the microphone. Allow it, and the call begins.",
      hint: "Sound goes to the avatar's server only, and only during a call.",
      actions: [...this.#sample, CANCEL],
    };
  }

  /** @returns {Notice} */
  connecting() {
    return {
      icon: "wave",
      tone: "busy",
      title: "Connecting",
      text: "Opening the line to the avatar.",
      actions: [CANCEL],
    };
  }

  /**
   * @param {MicrophoneFault} fault
   * @param {string} host The page's address, for the words.
   * @returns {Notice}
   */
  withoutMicrophone(fault, host) {
    /** @type {Readonly<Record<MicrophoneFault, [title: string, text: string]>>} */
    const words = {
      insecure: [
        "No microphone at this address",
        `Browsers give a microphone to secure pages only, and http://${host} is not one. ` +
          "Open this page by https:// (an echo_rtc server has --tls-cert and --tls-self-signed for that), or on the " +
          "server's own machine by http://localhost.",
      ],
      framed: [
        "No microphone in this frame",
        'The page around this one does not pass the microphone on. Its iframe needs allow="microphone; autoplay".',
      ],
      refused: [
        "The microphone was refused",
        "Allow the microphone for this page in your browser's address bar or settings, then try again.",
      ],
      missing: ["There is no microphone", "Plug one in or switch it on, then try again."],
      busy: [
        "The microphone is in use",
        "Another program or the system keeps it. Close what uses it, then try again.",
      ],
      failed: ["The microphone does not start", "The browser gives no reason. Choose another one, or try again."],
      ended: ["That voice has ended", "The page around gave a track that is over. Give another one, then try again."],
    };
    const [title, text] = words[fault];
    const hopeless = fault === "insecure" || fault === "framed";
    return {
      code: `microphone-${fault}`,
      icon: hopeless ? "lock" : "mic-off",
      tone: "warning",
      title,
      text,
      actions: [...(hopeless ? [] : [AGAIN]), ...this.#sample],
    };
  }

  /** @returns {Notice} */
  withoutSample() {
    return {
      code: "sample",
      icon: "wave",
      tone: "warning",
      title: "The sample voice cannot be played",
      text: "Its file could not be loaded from the server. Try again, or use your microphone.",
      actions: [AGAIN, MICROPHONE],
    };
  }

  /**
   * Where no call is possible whatever the visitor does.
   * @param {"unsupported" | "nameless" | "address"} why
   * @returns {Notice}
   */
  impossible(why) {
    const words = {
      unsupported: [
        "This browser cannot make calls",
        "It has no WebRTC, or it is switched off. A current Chrome, Edge, Firefox or Safari can.",
      ],
      nameless: ["No stream is named", "Set the attribute name of <echo-rtc> to the stream that is to be watched."],
      address: [
        "The server has no address",
        "Set the attribute src of <echo-rtc> to an address that begins with https://.",
      ],
    };
    const [title = "", text = ""] = words[why];
    return { code: why, icon: "warning", tone: "warning", title, text, actions: [] };
  }

  /**
   * Between two attempts.
   * @param {Wait} wait
   * @returns {Notice}
   */
  waiting(wait) {
    if (wait.why === "starting") {
      return loading(wait.detail);
    }
    /** @type {Readonly<Record<Exclude<Wait["why"], "starting">, [keyof typeof ICONS, string, string]>>} */
    const words = {
      full: [
        "full",
        "All places are taken",
        "This server holds as many calls as it can. Yours begins as soon as one of them ends.",
      ],
      limited: ["clock", "A short pause", "The server has had too many calls from here. Yours begins by itself."],
      taken: ["full", "The name is in use", "Somebody else is live under it. Your call begins when it is free."],
      offline: ["clock", "Nobody is live yet", "The avatar appears here by itself as soon as its voice begins."],
      stopping: [
        "clock",
        "The server is restarting",
        "It takes no calls at the moment. Yours begins when it is back.",
      ],
      blocked: [
        "unplugged",
        "Sound and picture find no way",
        "The server answers, but its media does not arrive. A firewall may be blocking UDP.",
      ],
      unreachable: [
        "unplugged",
        wait.reconnecting ? "The connection was lost" : "The server cannot be reached",
        navigator.onLine
          ? "The server does not answer. Either it is not running, or the network in between is down."
          : "This device is offline. The call goes on when the network is back.",
      ],
      lost: ["unplugged", "The connection was lost", "Reconnecting. Keep this page open."],
    };
    const [icon, title, text] = words[wait.why];
    return { icon, tone: wait.why === "offline" ? "busy" : "warning", title, text, actions: [NOW, CANCEL] };
  }

  /**
   * After a call.
   * @param {End} end
   * @returns {Notice | null} null where it was the visitor's own wish.
   */
  ended(end) {
    if (end.why === "closed") {
      return null;
    }
    const said = sentence(end.detail, "It gave no reason.");
    const gaveUp =
      end.last === "blocked"
        ? "It answers, but its media never arrives. Have the firewall let UDP through, then try again."
        : "Several attempts have failed. Look at the server and the network, then try again.";
    /** @type {Readonly<Record<Exclude<End["why"], "closed">, [keyof typeof ICONS, string, string, Action]>>} */
    const words = {
      ended: ["phone-end", "The server ended the call", said, action("start", "Start again")],
      rejected: ["warning", "The server refused the call", said, AGAIN],
      unauthorized: ["lock", "This call needs permission", "The server opens it to those who have a token.", AGAIN],
      "gave-up": ["unplugged", "The server stays out of reach", gaveUp, AGAIN],
    };
    const [icon, title, text, way] = words[end.why];
    const hint = end.why === "unauthorized" && end.detail !== "" ? { hint: end.detail } : {};
    return { code: end.why, icon, tone: "warning", title, text, ...hint, actions: [way] };
  }

  /**
   * When the browser wants a tap before it plays anything.
   * @returns {Notice}
   */
  tapToPlay() {
    return {
      icon: "play",
      tone: "calm",
      title: "Tap to watch and listen",
      text: "Your browser plays only after a tap.",
      actions: [action("play", "Play")],
    };
  }

  /** @param {Source} source */
  #voices(source) {
    if (source === "sample") {
      return [action("sample", "Start with the sample voice"), MICROPHONE];
    }
    const name = source === "microphone" ? "microphone" : "start";
    const other = this.#hasSample ? [action("sample", "Try the sample voice")] : [];
    return [action(name, "Start the call"), ...other];
  }

  get #sample() {
    return this.#hasSample ? [SAMPLE] : [];
  }
}

/**
 * @param {ActionName} name
 * @param {string} label
 * @returns {Action}
 */
function action(name, label) {
  return { name, label };
}

/**
 * @param {string} detail
 * @returns {Notice}
 */
function loading(detail) {
  return {
    icon: "clock",
    tone: "busy",
    title: "The avatar is getting ready",
    text: "The server is still loading it. The call begins by itself.",
    ...(detail === "" ? {} : { hint: detail }),
    actions: [CANCEL],
  };
}

/**
 * A server's phrase as a sentence.
 * @param {string} phrase
 * @param {string} otherwise Where there is none.
 */
function sentence(phrase, otherwise) {
  const text = phrase.trim();
  return text === "" ? otherwise : text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

// --------------------------------------------------------------------------------------------- the server's HTTP side
// Turns every way in which the server can say no, or not answer at all, into a `Refusal`. Knows nothing of WebRTC.

/**
 * @typedef {"full" | "limited" | "taken" | "offline" | "starting" | "stopping" | "unreachable" | "unauthorized"
 *     | "rejected"} RefusalKind
 * full: no place free. limited: asked too often. taken: the name belongs to another. offline: nobody is live under the
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
 * @property {RTCIceServer[]} [ice_servers]
 */

/** @typedef {{ name: string, preview: string }} Avatar preview: address of a picture of it. */

/**
 * @typedef {object} Answer
 * @property {string} sdp
 * @property {string} session The address at which the server keeps what was opened: DELETE ends it.
 */

const ANSWER_TIMEOUT_MS = 20_000;
const LOOK_TIMEOUT_MS = 4_000;

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
    const content = await contentOf(await this.#fetch("/config", {}, LOOK_TIMEOUT_MS));
    return /** @type {Configuration} */ (/** @type {unknown} */ (content));
  }

  /**
   * The avatars that a call can have, the server's first one first.
   * @returns {Promise<Avatar[]>}
   */
  async avatars() {
    const content = await contentOf(await this.#fetch("/avatars", {}, LOOK_TIMEOUT_MS));
    if (!Array.isArray(content)) {
      throw new Refusal("unreachable", "The answer is not one of an echo_rtc server.");
    }
    return content.map(({ name, preview }) => ({ name, preview: new URL(this.#base + preview).href }));
  }

  /** Resolves if a call could be opened now; rejects with the Refusal that says why not. */
  async ready() {
    await contentOf(await this.#fetch("/readyz", {}, LOOK_TIMEOUT_MS));
  }

  /**
   * Opens a call. An empty `avatar` leaves the choice to the server, an empty `name` the stream without one.
   * @param {string} sdp
   * @param {{ avatar: string, name: string }} wish
   * @returns {Promise<Answer>}
   */
  async call(sdp, { avatar, name }) {
    const body = JSON.stringify({ sdp, type: "offer", ...(avatar && { avatar }), ...(name && { name }) });
    const headers = { "Content-Type": "application/json" };
    const answer = await contentOf(await this.#fetch("/offer", { method: "POST", headers, body }, ANSWER_TIMEOUT_MS));
    if (typeof answer.sdp !== "string" || typeof answer.stream !== "string") {
      throw new Refusal("unreachable", "The answer is not one of an echo_rtc server.");
    }
    return { sdp: answer.sdp, session: `${this.#base}/streams/${encodeURIComponent(answer.stream)}` };
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
    const location = new URL(response.headers.get("Location") ?? "", response.url);
    if (location.origin !== new URL(response.url).origin) {
      throw new Refusal("rejected", "The server names a session at another address, which gets no token.");
    }
    return { sdp: await response.text(), session: location.href };
  }

  /**
   * Whether the server still has a session. An unreachable server rejects with a Refusal.
   * @param {string} session
   * @returns {Promise<boolean>}
   */
  async has(session) {
    return (await this.#fetch(session, {}, LOOK_TIMEOUT_MS)).ok;
  }

  /**
   * Ends a session, also while the page is going away. Resolves when the server has answered, whatever it says: a
   * session or a server that is gone already is as good.
   * @param {string} session
   */
  async hangUp(session) {
    await this.#fetch(session, { method: "DELETE", keepalive: true }, LOOK_TIMEOUT_MS).catch(() => {});
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

// ------------------------------------------------------------------------------------------------------ one connection
// One RTCPeerConnection from the offer to its end: finds out when it is over and why. Whether there is another attempt
// is not its business, nor is where a voice comes from or where the avatar is shown.

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
 * @property {number} steps Denoising steps of a clip at the moment; fewer while rendering is late.
 */

/**
 * @typedef {object} Wish What is to be opened.
 * @property {Mode} mode
 * @property {string} avatar Of a call; "" for the server's first.
 * @property {string} name Of the stream: for a call "" or the one under which others view it; for a view, whose.
 */

const SERVER_STATES = ["connecting", "idle", "speaking", "behind"];
const GATHERING_LIMIT_MS = 3_000;
const CONNECT_LIMIT_MS = 15_000;
/** Something comes from the server every second. Silent for this long, it is asked whether it still has the session. */
const QUIET_MS = 2_500;
const WATCH_EVERY_MS = 500;
/** A view whose server says nothing for longer than the second that ours takes makes do with the browser's figures. */
const UNTOLD_MS = 1_200;

/**
 * Events, all CustomEvents: "media" (the avatar's MediaStream, once, when it begins), "state" (one of the server's, or
 * "watching"), "stats" (StreamStatistics once a second; null in a view that is told none), "steady" (whether packets
 * arrive at the moment).
 */
export class Connection extends EventTarget {
  /** @type {Server} */ #server;
  /** @type {Wish} */ #wish;
  /** @type {MediaStreamTrack | null} */ #voice;
  /** @type {RTCPeerConnection | null} */ #peer = null;
  /** @type {RTCRtpSender | null} */ #sender = null;
  /** @type {string | null} */ #session = null;
  /** @type {MediaStream} */ #media = new MediaStream();
  /** @type {(outcome: Outcome) => void} */ #finish = () => {};
  /** @type {Promise<Outcome>} */ #over;
  #closed = false;
  #connected = false;
  #openedAt = 0;
  #heardAt = 0;
  #toldAt = 0;
  #received = 0;
  #asking = false;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #watch;

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
    this.#openedAt = this.#heardAt = performance.now();
    this.#watch = setInterval(() => this.#look(), WATCH_EVERY_MS);
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
    events.addEventListener("message", (message) => this.#hear(message.data));
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
      this.#heardAt = performance.now();
      this.#emit("steady", true);
      if (this.#isView) {
        this.#emit("state", { state: "watching" });
      }
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
      this.#session = null; // the server has ended it itself
      // A view outlives the streams of its name: another may begin at any time.
      this.#end(this.#isView ? "lost" : "ended", typeof message.reason === "string" ? message.reason : "");
    } else if (message?.type === "stats") {
      this.#toldAt = this.#heardAt;
      this.#emit("stats", message);
    } else if (message?.type === "state" && SERVER_STATES.includes(String(message.state))) {
      this.#emit("state", message);
    }
  }

  async #look() {
    const now = performance.now();
    if (!this.#connected) {
      if (now - this.#openedAt > CONNECT_LIMIT_MS) {
        this.#end("blocked");
      }
      return;
    }
    if (this.#isView) {
      await this.#count(now);
    }
    if (now - this.#heardAt > QUIET_MS) {
      this.#ask();
    }
  }

  /**
   * A view may be told nothing, so its packets stand for the server's word.
   * @param {number} now
   */
  async #count(now) {
    const rows = [...((await this.report())?.values() ?? [])];
    const received = rows.reduce((sum, row) => sum + (row.type === "inbound-rtp" ? (row.packetsReceived ?? 0) : 0), 0);
    if (received > this.#received) {
      this.#received = received;
      this.#heardAt = now;
    }
    if (!this.#closed && now - this.#toldAt > UNTOLD_MS) {
      this.#toldAt = now;
      this.#emit("stats", null);
    }
  }

  /** Asks a server that has fallen silent; ICE alone would take half a minute to notice that it is gone. */
  async #ask() {
    if (this.#asking || this.#session === null) {
      return;
    }
    this.#asking = true;
    try {
      if (!(await this.#server.has(this.#session))) {
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
    this.#hangUp(leaving);
    this.#finish({ kind, detail });
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

// -------------------------------------------------------------------------------------------------------------- a call
// Kept up for as long as somebody wants it: waits for a server that is full or still starting, and connects anew when
// the connection is lost. Speaks in events; knows nothing of the element or of microphones.

/**
 * @typedef {"new" | "connecting" | "idle" | "speaking" | "behind" | "watching" | "waiting" | "closed"} CallState
 * connecting, idle, speaking, behind: as the server says. watching: a view is connected. waiting: between two attempts.
 */

/**
 * @typedef {object} Wait Why there is no connection at the moment, and when the next attempt comes.
 * @property {"full" | "limited" | "taken" | "offline" | "starting" | "stopping" | "unreachable" | "lost"
 *     | "blocked"} why
 * @property {string} detail The server's own sentence, or "".
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
/** Each delay is stretched by up to this share, so that a restarted server is not asked by everybody at once. */
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

/**
 * Events, all CustomEvents: "state" (CallState), "media" (the MediaStream to show, anew for each connection), "stats"
 * (StreamStatistics or null), "wait" (Wait), "steady" (whether packets arrive at the moment), "end" (End), which is the
 * last. One object is one call: make it, `start` it, `close` it.
 */
export class EchoCall extends EventTarget {
  /** @type {Server} */ #server;
  /** @type {Wish} */ #wish;
  /** @type {MediaStreamTrack | null} */ #voice = null;
  /** @type {Connection | null} */ #connection = null;
  /** @type {CallState} */ #state = "new";
  /** @type {() => void} Ends the present pause between attempts. */ #wake = () => {};
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

  async #run() {
    let failures = 0;
    let wasUp = false;
    while (!this.#over) {
      this.#setState("connecting");
      const connection = new Connection(this.#server, this.#wish, this.#voice);
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
  async #live(connection) {
    this.#connection = connection;
    connection.addEventListener("media", (event) => this.#emit("media", detailOf(event)));
    connection.addEventListener("state", (event) => this.#setState(detailOf(event).state));
    connection.addEventListener("stats", (event) => this.#emit("stats", detailOf(event)));
    connection.addEventListener("steady", (event) => this.#emit("steady", detailOf(event)));
    try {
      await connection.open();
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
  const asked = outcome instanceof Refusal ? outcome.retryAfterS : null;
  const delayS =
    why === "starting" ? PATIENCE_S.starting
    : why in PATIENCE_S ? (asked ?? PATIENCE_S[/** @type {keyof typeof PATIENCE_S} */ (why)])
    : wasConnected ? FIRST_RETRY_S
    : Math.max(asked ?? 0, backOffS(failures, Math.random()));
  const quiet = why === "starting" || why === "offline" || delayS < 1;
  return { why, detail: outcome.detail, delayMs: delayS * 1000, quiet };
}

/** @param {Event} event */
function detailOf(event) {
  return /** @type {CustomEvent} */ (event).detail;
}

// ---------------------------------------------------------------------------------------------------------- the voices
// Each has a track, gives it back on `close`, and says "lost" when the track ends without that.

/**
 * @typedef {"insecure" | "framed" | "refused" | "missing" | "busy" | "failed" | "ended"} MicrophoneFault
 * insecure: the page's address is one to which browsers give no microphone. framed: the page around does not pass it
 * on. refused: by the user or a policy. missing: none is connected. busy: the system or another program keeps it.
 * ended: the track that the page gave is over. failed: anything else.
 */

/** @type {Readonly<Record<string, MicrophoneFault>>} By the names of getUserMedia's exceptions. */
const FAULTS = Object.freeze({
  NotAllowedError: "refused",
  SecurityError: "refused",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
});

/** Mono, and without what the loudspeakers play: otherwise the avatar would hear and repeat itself. */
const WANTED = Object.freeze({
  echoCancellation: true,
  noiseSuppression: true,
  autoGainControl: true,
  channelCount: 1,
});

/** The pause after each round of a sample voice, in which the avatar's mouth comes to rest. */
const SAMPLE_PAUSE_S = 2.5;

export class MicrophoneError extends Error {
  /**
   * @param {MicrophoneFault} fault
   * @param {unknown} [cause]
   */
  constructor(fault, cause) {
    super(`no microphone: ${fault}`, { cause });
    this.name = "MicrophoneError";
    /** @readonly */ this.fault = fault;
  }
}

/** A track that speaks. Event: "lost" when it has ended without `close`, for instance because it was unplugged. */
class Voice extends EventTarget {
  /**
   * @param {MediaStreamTrack} track
   * @param {Source} source
   */
  constructor(track, source) {
    super();
    /** @readonly */ this.track = track;
    /** @readonly */ this.source = source;
    track.contentHint = "speech";
    // "ended" is for ends that come from outside; `stop` does not fire it.
    track.addEventListener("ended", () => this.dispatchEvent(new Event("lost")));
  }

  close() {
    this.track.stop();
  }
}

/** A recorded voice: a file played round and round, with a pause. Needs no microphone and no permission. */
class SampleVoice extends Voice {
  /** @type {AudioContext} */ #context;
  #resume = () => this.#context.resume().catch(() => {});

  /**
   * @param {AudioContext} context The voice's own.
   * @param {AudioBuffer} round What is repeated.
   */
  constructor(context, round) {
    const out = new MediaStreamAudioDestinationNode(context, { channelCount: 1 });
    const source = new AudioBufferSourceNode(context, { buffer: round, loop: true });
    source.connect(out);
    source.start();
    super(/** @type {MediaStreamTrack} */ (out.stream.getAudioTracks()[0]), "sample");
    this.#context = context;
    // Phones stop the sound of pages that are put away.
    document.addEventListener("visibilitychange", this.#resume);
  }

  close() {
    super.close();
    document.removeEventListener("visibilitychange", this.#resume);
    this.#context.close();
  }
}

/**
 * Opens a microphone; rejects with a MicrophoneError.
 * @param {string} device Its id; "" for the system's choice, which also stands in for one that is not there any more.
 * @returns {Promise<Voice>}
 */
async function openMicrophone(device) {
  if (navigator.mediaDevices?.getUserMedia === undefined) {
    throw new MicrophoneError("insecure");
  }
  const audio = device === "" ? WANTED : { ...WANTED, deviceId: { exact: device } };
  try {
    const [track] = (await navigator.mediaDevices.getUserMedia({ audio })).getAudioTracks();
    if (track === undefined) {
      throw new DOMException("the stream has no sound", "NotFoundError");
    }
    return new Voice(track, "microphone");
  } catch (error) {
    const fault = FAULTS[error instanceof Error ? error.name : ""] ?? "failed";
    if (device !== "" && fault === "missing") {
      return openMicrophone("");
    }
    throw new MicrophoneError(fault === "refused" && isFramedWithoutMicrophone() ? "framed" : fault, error);
  }
}

/** Whether it is the page around this frame that keeps the microphone back. Not every browser tells. */
function isFramedWithoutMicrophone() {
  const policy = /** @type {{ allowsFeature(name: string): boolean } | undefined} */ (
    /** @type {any} */ (document).featurePolicy
  );
  return globalThis.parent !== globalThis.self && policy?.allowsFeature("microphone") === false;
}

/**
 * Starts a recorded voice from its beginning; rejects if the file cannot be had or decoded. To be called within a
 * gesture the first time, which browsers want before they make any sound.
 * @param {string | null} url Of an audio file that browsers decode.
 * @returns {Promise<Voice>}
 */
async function openSample(url) {
  if (url === null) {
    throw new Error("the attribute sample is missing");
  }
  const context = new AudioContext();
  try {
    const response = await fetch(url);
    if (!response.ok) {
      throw new Error(`${url} answers ${response.status}`);
    }
    const recording = await context.decodeAudioData(await response.arrayBuffer());
    const pause = Math.round(SAMPLE_PAUSE_S * recording.sampleRate);
    // Recording and pause in one buffer: looping then needs no timer, which hidden pages get late.
    const round = context.createBuffer(1, recording.length + pause, recording.sampleRate);
    round.copyToChannel(recording.getChannelData(0), 0);
    return new SampleVoice(context, round);
  } catch (error) {
    context.close();
    throw error;
  }
}

/**
 * A track of the page around. It stays the page's: a copy of it is sent, muted and stopped here.
 * @param {MediaStreamTrack} track
 * @returns {Voice}
 */
function borrow(track) {
  if (track.readyState === "ended") {
    throw new MicrophoneError("ended");
  }
  return new Voice(track.clone(), "track");
}

// --------------------------------------------------------------------------------------------------------- the figures
// What a browser counts of its connection (W3C webrtc-stats) as figures for people. Knows no connection.

/**
 * @typedef {object} LinkFigures What cannot be told (yet, or by this browser) is null.
 * @property {number | null} fps Pictures decoded in a second.
 * @property {number | null} kbps Received, sound and picture together.
 * @property {number | null} roundTripMs
 * @property {number | null} lossPercent Of the packets since the last report.
 * @property {string | null} codec Of the picture, as "H264".
 * @property {string | null} size Of the picture, as "512 × 512".
 */

/** @typedef {{ atMs: number, bytes: number, packets: number, lost: number, frames: number }} Totals */

/** @typedef {Record<string, any>} Row One entry of a report; its members depend on its type and on the browser. */

/** Figures nearer together than this say more about the reports' own timing. */
const MIN_SPAN_MS = 200;

export class LinkMeter {
  /** @type {Totals | null} */ #last = null;

  /** Forgets what was: a new connection counts from 0. */
  reset() {
    this.#last = null;
  }

  /**
   * @param {Iterable<[string, Row]>} report As `RTCPeerConnection.getStats` gives it.
   * @returns {LinkFigures}
   */
  read(report) {
    const rows = new Map(report);
    const inbound = [...rows.values()].filter((row) => row.type === "inbound-rtp");
    const picture = inbound.find((row) => row.kind === "video");
    const totals = totalsOf(inbound, picture);
    const last = this.#last;
    const spanS = last === null || totals === null ? 0 : (totals.atMs - last.atMs) / 1000;
    const measured = last !== null && totals !== null && spanS * 1000 >= MIN_SPAN_MS;
    if (last === null || measured) {
      this.#last = totals;
    }
    const packets = measured ? totals.packets - last.packets : 0;
    const lost = measured ? Math.max(0, totals.lost - last.lost) : 0;
    return {
      fps: measured ? (totals.frames - last.frames) / spanS : null,
      kbps: measured ? ((totals.bytes - last.bytes) * 8) / 1000 / spanS : null,
      roundTripMs: roundTripMs(rows),
      lossPercent: packets + lost > 0 ? (100 * lost) / (packets + lost) : null,
      codec: rows.get(picture?.codecId)?.mimeType?.split("/")[1] ?? null,
      size: picture?.frameWidth ? `${picture.frameWidth} × ${picture.frameHeight}` : null,
    };
  }
}

/**
 * @param {Row[]} inbound
 * @param {Row | undefined} picture
 * @returns {Totals | null}
 */
function totalsOf(inbound, picture) {
  const [first] = inbound;
  if (first === undefined) {
    return null;
  }
  const sum = (/** @type {string} */ key) => inbound.reduce((total, row) => total + (row[key] ?? 0), 0);
  return {
    atMs: first.timestamp,
    bytes: sum("bytesReceived") + sum("headerBytesReceived"),
    packets: sum("packetsReceived"),
    lost: sum("packetsLost"),
    frames: picture?.framesDecoded ?? 0,
  };
}

/** @param {Map<string, Row>} rows */
function roundTripMs(rows) {
  const pairs = [...rows.values()].filter((row) => row.type === "candidate-pair" && row.state === "succeeded");
  const pair = pairs.find((row) => row.nominated) ?? pairs[0];
  return typeof pair?.currentRoundTripTime === "number" ? pair.currentRoundTripTime * 1000 : null;
}

// ----------------------------------------------------------------------------------------------------------- the looks
// The stage, the words over it and the controls below it: shows what it is told, and tells what the visitor does.

/** Outlines of 24 x 24, as paths. */
export const ICONS = Object.freeze({
  mark:
    "M2 12.5a6.3 6.3 0 1 0 12.6 0 6.3 6.3 0 1 0-12.6 0M6 14.7q2.3 1.9 4.6 0M17 7.7a7.4 7.4 0 0 1 0 9.6" +
    "M20.6 4.5a12.2 12.2 0 0 1 0 16",
  mic: "M9 6a3 3 0 0 1 6 0v5a3 3 0 0 1-6 0zM5.5 11.5a6.5 6.5 0 0 0 13 0M12 18v3",
  "mic-off":
    "M9 8.5V6a3 3 0 0 1 6 0v5M14.6 13.6A3 3 0 0 1 9 11.5M5.5 11.5a6.5 6.5 0 0 0 10.9 4.8" +
    "M18.2 13.6c.2-.7.3-1.4.3-2.1M12 18v3M4 4l16 16",
  sound: "M4 9.5v5h3.5l4.5 4v-13l-4.5 4zM15.5 9a4.2 4.2 0 0 1 0 6M18 6.3a8 8 0 0 1 0 11.4",
  "sound-off": "M4 9.5v5h3.5l4.5 4v-13l-4.5 4zM16 9.5l5 5M21 9.5l-5 5",
  "phone-end":
    "M3 13.2c5.4-4.9 12.6-4.9 18 0 .6.6.6 1.4.1 2l-1.6 1.7c-.5.5-1.3.6-1.9.2l-2.1-1.5c-.5-.4-.8-1-.7-1.6" +
    "l.1-1.4c-1.9-.6-3.9-.6-5.8 0l.1 1.4c.1.6-.2 1.2-.7 1.6l-2.1 1.5c-.6.4-1.4.3-1.9-.2l-1.6-1.7" +
    "c-.5-.6-.5-1.4.1-2z",
  wave: "M4 10.5v3M8 7.5v9M12 4v16M16 8v8M20 10.5v3",
  lock:
    "M5 13.5A2.5 2.5 0 0 1 7.5 11h9a2.5 2.5 0 0 1 2.5 2.5v4a2.5 2.5 0 0 1-2.5 2.5h-9A2.5 2.5 0 0 1 5 17.5z" +
    "M8 11V8a4 4 0 0 1 7.6-1.7M12 14.8v1.6",
  full:
    "M5.8 8.5a3.2 3.2 0 1 0 6.4 0 3.2 3.2 0 1 0-6.4 0M3.2 19a5.8 5.8 0 0 1 11.6 0" +
    "M15.8 5.6a3.2 3.2 0 0 1 0 5.8M17.4 14a5.8 5.8 0 0 1 3.4 5",
  clock: "M3.5 12a8.5 8.5 0 1 0 17 0 8.5 8.5 0 1 0-17 0M12 7.2V12l3.2 2.2",
  unplugged:
    "M4.5 10a11 11 0 0 1 6-2.9M19.5 10a11 11 0 0 0-3.1-2.2M7.6 13.4a6.6 6.6 0 0 1 4.6-1.9" +
    "M10.4 16.6a2.6 2.6 0 0 1 3.2 0M12 19.6h.01M4 4l16 16",
  warning: "M12 4.2 21 19.5H3zM12 10v4.4M12 17h.01",
  play: "M8 5.5v13l11-6.5z",
});

/**
 * Colours are named by what they are for, each once for light and dark, and follow the page's `color-scheme`. All that
 * a page may set is read from a custom property of its own name here, and nowhere else.
 */
const STYLE = `
:host {
  --accent: var(--echo-rtc-accent, light-dark(#0b6b52, #4cd4a6));
  --on-accent: var(--echo-rtc-on-accent, light-dark(#ffffff, #042219));
  --surface: var(--echo-rtc-surface, light-dark(#ffffff, #131b18));
  --ink: var(--echo-rtc-ink, light-dark(#11201b, #e8f0ed));
  --ink-soft: var(--echo-rtc-ink-soft, light-dark(#485b54, #a5b6b0));
  --line: var(--echo-rtc-line, light-dark(#d3ddd9, #27332f));
  --edge: var(--echo-rtc-edge, light-dark(#7b8c86, #71837c));
  --warning: var(--echo-rtc-warning, light-dark(#8a4b00, #f5bd5c));
  --hang-up: var(--echo-rtc-hang-up, #c0291d);
  --radius: var(--echo-rtc-radius, 1.25rem);
  --stage-width: var(--echo-rtc-stage-width, 100%);
  --accent-strong: color-mix(in oklab, var(--accent) 84%, var(--ink));
  --tint: color-mix(in oklab, var(--accent) 14%, var(--surface));
  --warning-tint: color-mix(in oklab, var(--warning) 14%, var(--surface));
  --ring: color-mix(in srgb, var(--accent) 14%, transparent);
  --on-picture: #f2f7f5;
  --shade: rgb(9 15 13 / 84%);
  --shadow: 0 0.75rem 2rem -0.75rem light-dark(rgb(17 32 27 / 18%), rgb(0 0 0 / 60%));
  --quick: 160ms;
  display: grid;
  grid-template-columns: minmax(0, 1fr);
  align-content: start;
  justify-items: center;
  gap: 0.9rem;
  color: var(--ink);
  line-height: 1.5;
  text-align: start;
}

:host([hidden]),
[hidden] {
  display: none !important;
}

*,
*::before,
*::after {
  box-sizing: border-box;
}

h2,
p {
  margin: 0;
}

button,
input {
  font: inherit;
  color: inherit;
}

button,
label {
  -webkit-tap-highlight-color: transparent;
}

:focus-visible {
  outline: 3px solid var(--accent);
  outline-offset: 2px;
}

.icon {
  display: block;
  width: 1.5rem;
  height: 1.5rem;
  flex: none;
  fill: none;
  stroke: currentColor;
  stroke-width: 1.8;
  stroke-linecap: round;
  stroke-linejoin: round;
}

.unseen {
  position: absolute;
  width: 1px;
  height: 1px;
  margin: -1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

/* The picture */

.stage {
  position: relative;
  display: grid;
  width: min(100%, var(--stage-width));
  aspect-ratio: var(--ratio, 1); /* the least: words that need more room make it taller */
  overflow: clip;
  border-radius: var(--radius);
  background: var(--surface);
  box-shadow: var(--shadow);
  outline: 1px solid var(--line);
  isolation: isolate;
  container-type: inline-size;
  contain-intrinsic-inline-size: 20rem;
}

.stage[data-phase="live"] {
  background: #070b0a;
  outline: 0;
}

.stage::after {
  content: "";
  position: absolute;
  inset: 0;
  border: 3px solid transparent;
  border-radius: inherit;
  pointer-events: none;
  transition: border-color 400ms;
}

.stage:has(.chip[data-state="speaking"])::after {
  border-color: var(--accent);
}

.stage:has(.chip[data-state="behind"])::after {
  border-color: var(--warning);
}

video,
.poster {
  display: block;
  width: 100%;
  height: 100%;
  position: absolute;
  inset: 0;
  object-fit: contain;
}

.poster {
  object-fit: cover;
}

.overlay {
  position: relative;
  isolation: isolate;
  display: grid;
  place-items: center;
  overflow: clip;
  padding: 3.5rem 1.25rem 1.5rem;
  background: var(--surface);
  text-align: center;
}

.notice {
  width: 100%;
  max-width: 27rem;
  display: grid;
  justify-items: center;
  gap: 0.7rem;
}

.notice p {
  text-wrap: pretty;
  overflow-wrap: anywhere;
}

.title {
  font-size: clamp(1.3rem, 1rem + 2.4cqi, 1.9rem);
  font-weight: 650;
  line-height: 1.2;
  letter-spacing: -0.02em;
  text-wrap: balance;
}

.text {
  color: var(--ink-soft);
}

.emblem {
  position: relative;
  display: grid;
  width: 4rem;
  height: 4rem;
  place-items: center;
  border-radius: 50%;
  background: var(--tint);
  color: var(--accent);
}

/* Rings that go out from it, as a sound does. */
.emblem::before {
  content: "";
  position: absolute;
  z-index: -1;
  width: 60rem;
  height: 60rem;
  border-radius: 50%;
  background: repeating-radial-gradient(circle, transparent 0 3.9rem, var(--ring) 3.96rem 4rem, transparent 4.06rem);
  mask: radial-gradient(circle, #000 5rem, transparent 24rem);
  pointer-events: none;
}

.emblem .icon {
  width: 2.2rem;
  height: 2.2rem;
}

.notice[data-tone="warning"] .emblem {
  background: var(--warning-tint);
  color: var(--warning);
}

.notice[data-tone="busy"] .emblem::after {
  content: "";
  position: absolute;
  inset: -0.3rem;
  border: 0.16rem solid var(--tint);
  border-top-color: var(--accent);
  border-radius: 50%;
  animation: turn 1.1s linear infinite;
}

/* Over a poster the words lie on a sheet at its foot, so that the face is seen. */

.overlay[data-over="poster"] {
  place-items: end center;
  padding: 3rem 0.75rem 0.75rem;
  background: none;
}

.overlay[data-over="poster"] .notice {
  max-width: 30rem;
  padding: 0.9rem 1rem 1rem;
  border-radius: 1rem;
  background: var(--surface);
  box-shadow: var(--shadow);
}

.overlay[data-over="poster"] .emblem,
.overlay[data-over="poster"] .notice[data-tone="calm"] :is(.text, .hint) {
  display: none;
}

.countdown {
  font-variant-numeric: tabular-nums;
  font-weight: 600;
}

.hint {
  color: var(--ink-soft);
  font-size: 0.85rem;
  line-height: 1.45;
}

.actions {
  display: flex;
  flex-wrap: wrap;
  justify-content: center;
  gap: 0.6rem;
  margin-top: 0.35rem;
}

.action {
  min-height: 2.9rem;
  padding: 0.5rem 1.3rem;
  border: 1px solid var(--edge);
  border-radius: 999px;
  background: var(--surface);
  font-weight: 600;
  cursor: pointer;
  transition: background-color var(--quick), border-color var(--quick);
}

.action:hover {
  border-color: var(--accent);
  background: var(--tint);
}

.action.first {
  border-color: transparent;
  background: var(--accent);
  color: var(--on-accent);
}

.action.first:hover {
  background: var(--accent-strong);
}

/* Chips over the picture: always light on dark, whatever plays beneath */

.chip {
  position: absolute;
  top: 0.85rem;
  left: 0.85rem;
  display: flex;
  align-items: center;
  gap: 0.5rem;
  padding: 0.28rem 0.8rem 0.28rem 0.65rem;
  border-radius: 999px;
  background: var(--shade);
  color: var(--on-picture);
  font-size: 0.85rem;
  font-weight: 600;
  line-height: 1.4;
}

.clock {
  right: 0.85rem;
  left: auto;
  padding-inline: 0.75rem;
  font-variant-numeric: tabular-nums;
}

.dot {
  width: 0.6rem;
  height: 0.6rem;
  border-radius: 50%;
  background: #9fb0aa;
}

.chip:is([data-state="connecting"], [data-state="waiting"]) .dot {
  background: #7db4ff;
  animation: breathe 1.4s ease-in-out infinite;
}

.chip[data-state="idle"] .dot {
  background: #d6e2dd;
}

.chip:is([data-state="speaking"], [data-state="watching"]) .dot {
  background: #4cd4a6;
  box-shadow: 0 0 0 0.22rem rgb(76 212 166 / 30%);
}

.chip[data-state="behind"] .dot {
  background: #f5bd5c;
}

.chip[data-state="closed"] .dot {
  background: #ff8d82;
}

.banner,
.unmute {
  position: absolute;
  right: 0.85rem;
  bottom: 0.85rem;
  left: 0.85rem;
  width: fit-content;
  max-width: calc(100% - 1.7rem);
  margin-inline: auto;
  padding: 0.45rem 1rem;
  border: 0;
  border-radius: 1rem;
  background: var(--shade);
  color: var(--on-picture);
  font-size: 0.9rem;
  text-align: center;
}

.unmute {
  display: flex;
  min-height: 2.75rem;
  align-items: center;
  gap: 0.5rem;
  font-weight: 600;
  cursor: pointer;
}

.unmute:not([hidden]) + .banner {
  bottom: 4.2rem;
}

.caption {
  color: var(--ink-soft);
  font-size: 0.9rem;
  text-align: center;
}

/* Controls */

.controls {
  display: flex;
  max-width: 100%;
  flex-wrap: wrap;
  align-items: center;
  justify-content: center;
  gap: 0.35rem;
  padding: 0.4rem;
  border: 1px solid var(--line);
  border-radius: 1.4rem;
  background: var(--surface);
  box-shadow: var(--shadow);
}

.control {
  display: grid;
  min-width: 4.2rem;
  min-height: 3.5rem;
  justify-items: center;
  align-content: center;
  gap: 0.1rem;
  padding: 0.3rem 0.6rem;
  border: 0;
  border-radius: 1.05rem;
  background: transparent;
  font-size: 0.78rem;
  font-weight: 600;
  line-height: 1.2;
  cursor: pointer;
  transition: background-color var(--quick), color var(--quick);
}

.control:hover {
  background: var(--tint);
}

.control[aria-pressed="true"] {
  background: var(--warning-tint);
  color: var(--warning);
}

.hang-up,
.hang-up:hover {
  background: var(--hang-up);
  color: #ffffff;
}

.hang-up:hover {
  background: color-mix(in oklab, var(--hang-up) 85%, #000000);
}

.hang-up .icon {
  fill: currentColor;
  stroke: none;
}

.volume {
  display: grid;
  min-width: 0;
  max-width: 10.4rem;
  flex: 1 1 6rem;
  gap: 0.1rem;
  padding: 0 0.9rem 0 0.5rem;
  font-size: 0.78rem;
  font-weight: 600;
  line-height: 1.2;
}

.volume input {
  width: 100%;
  height: 1.6rem;
  margin: 0;
  appearance: none;
  background: transparent;
  cursor: pointer;
}

.volume input::-webkit-slider-runnable-track {
  height: 0.32rem;
  border-radius: 1rem;
  background: linear-gradient(to right, var(--accent) var(--filled, 100%), var(--edge) var(--filled, 100%));
}

.volume input::-moz-range-track {
  height: 0.32rem;
  border-radius: 1rem;
  background: var(--edge);
}

.volume input::-moz-range-progress {
  height: 0.32rem;
  border-radius: 1rem;
  background: var(--accent);
}

.volume input::-webkit-slider-thumb {
  width: 1.1rem;
  height: 1.1rem;
  margin-top: -0.39rem;
  appearance: none;
  border: 0.16rem solid var(--surface);
  border-radius: 50%;
  background: var(--accent);
  box-shadow: 0 0 0 1px var(--accent);
}

.volume input::-moz-range-thumb {
  width: 0.8rem;
  height: 0.8rem;
  border: 0.16rem solid var(--surface);
  border-radius: 50%;
  background: var(--accent);
  box-shadow: 0 0 0 1px var(--accent);
}

/* A small stage, wherever it stands */

@container (max-width: 36rem) {
  .overlay {
    padding: 3.25rem 1rem 1.1rem;
  }

  .emblem {
    width: 3.2rem;
    height: 3.2rem;
  }

  .emblem .icon {
    width: 1.6rem;
    height: 1.6rem;
  }

  .notice {
    gap: 0.5rem;
  }

  .text {
    font-size: 0.95rem;
  }

  .overlay[data-over="poster"] .notice {
    padding: 0.75rem;
  }

  .overlay[data-over="poster"] .notice[data-tone="calm"] .title {
    display: none;
  }

  .overlay[data-over="poster"] .actions {
    margin-top: 0;
  }

  .action {
    min-height: 2.75rem;
    padding-inline: 1.1rem;
  }
}

@keyframes turn {
  to {
    transform: rotate(1turn);
  }
}

@keyframes breathe {
  50% {
    opacity: 0.35;
  }
}

@media (prefers-reduced-motion: reduce) {
  *,
  *::before,
  *::after {
    transition: none !important;
    animation: none !important;
  }
}

@media (forced-colors: active) {
  .dot {
    forced-color-adjust: none;
  }
}
`;

/** @type {CSSStyleSheet | undefined} STYLE, made once for all elements of a page. */
let sheet;

/**
 * Events: "action" (CustomEvent with the ActionName of a notice's button, or "stop" of the call's own), "mute",
 * "silence" and "unmute" (a button was pressed), "volume" (the slider was moved).
 */
class Looks extends EventTarget {
  /** @type {ShadowRoot} */ #root;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #counting;
  #actionsKey = "";
  /** Whether a button that had the focus was hidden, so that the next one to come takes it over. */
  #focusFell = false;

  #video = element("video", { part: "video", playsinline: "", "aria-label": "The avatar, speaking" });
  #poster = element("img", { part: "poster", class: "poster", alt: "", hidden: "" });
  #noticeIcon = icon("mark");
  #title = element("h2", { part: "title", class: "title" });
  #text = element("p", { part: "text", class: "text" });
  #countdown = element("p", { part: "countdown", class: "countdown", hidden: "" });
  #actions = element("div", { class: "actions" });
  #hint = element("p", { part: "hint", class: "hint", hidden: "" });
  #notice = element(
    "div",
    { part: "notice", class: "notice", "data-tone": "calm" },
    element("span", { part: "emblem", class: "emblem" }, this.#noticeIcon),
    this.#title,
    this.#text,
    this.#countdown,
    this.#actions,
    this.#hint,
  );
  #overlay = element("div", { part: "overlay", class: "overlay", hidden: "" }, this.#notice);
  #state = element("span", {}, "Ready");
  #chip = element(
    "p",
    { part: "state", class: "chip", "data-state": "new" },
    element("span", { class: "dot", "aria-hidden": "true" }),
    this.#state,
  );
  #time = element("span", {}, "0:00");
  #clock = element(
    "p",
    { part: "clock", class: "chip clock", hidden: "" },
    element("span", { class: "unseen" }, "Length of the call: "),
    this.#time,
  );
  #unmute = element(
    "button",
    { part: "unmute", class: "unmute", type: "button", hidden: "" },
    icon("sound-off"),
    element("span", {}, "Tap for sound"),
  );
  #banner = element("p", { part: "banner", class: "banner", hidden: "" });
  #stage = element(
    "section",
    { part: "stage", class: "stage", "aria-label": "Avatar", tabindex: "-1", "data-phase": "off" },
    this.#video,
    this.#poster,
    this.#overlay,
    this.#chip,
    this.#clock,
    this.#unmute,
    this.#banner,
  );
  #muteIcon = icon("mic");
  #mute = control("Mute", "Mute your voice", this.#muteIcon);
  #silenceIcon = icon("sound");
  #silence = control("Sound", "Sound off", this.#silenceIcon);
  #slider = element("input", { type: "range", min: "0", max: "100", step: "5", value: "100" });
  #volume = element("label", { part: "volume", class: "volume" }, element("span", {}, "Volume"), this.#slider);
  #end = control("End", "End the call", icon("phone-end"));
  #controls = element(
    "div",
    { part: "controls", class: "controls", role: "group", "aria-label": "Call controls" },
    this.#mute,
    this.#silence,
    this.#volume,
    this.#end,
  );
  #caption = element("p", { part: "caption", class: "caption" });
  #status = element("p", { class: "unseen", role: "status" });
  #alert = element("p", { class: "unseen", role: "alert" });

  /** @param {ShadowRoot} root Empty. */
  constructor(root) {
    super();
    this.#root = root;
    if (sheet === undefined) {
      sheet = new CSSStyleSheet();
      sheet.replaceSync(STYLE);
    }
    root.adoptedStyleSheets = [sheet];
    this.#end.classList.add("hang-up");
    this.#end.hidden = true;
    root.append(this.#stage, this.#controls, this.#caption, this.#status, this.#alert);
    this.#end.addEventListener("click", () => this.#emit("action", "stop"));
    this.#mute.addEventListener("click", () => this.#emit("mute"));
    this.#silence.addEventListener("click", () => this.#emit("silence"));
    this.#unmute.addEventListener("click", () => this.#emit("unmute"));
    this.#slider.addEventListener("input", () => this.#emit("volume"));
    this.#poster.addEventListener("error", () => this.showPoster(""));
  }

  get video() {
    return this.#video;
  }

  /** The echo's volume, 0..1. */
  get volume() {
    return this.#slider.valueAsNumber / 100;
  }

  /** @param {number} ratio Of the picture's width to its height. */
  showRatio(ratio) {
    this.#stage.style.setProperty("--ratio", String(ratio));
  }

  /** @param {string} url Of an image that stands for the avatar until it moves; "" for none. */
  showPoster(url) {
    if (url === "") {
      this.#poster.removeAttribute("src");
    } else if (this.#poster.getAttribute("src") !== url) {
      this.#poster.src = url;
    }
    this.#poster.hidden = url === "" || this.#stage.dataset.phase === "live";
    this.#overlay.dataset.over = url === "" ? "nothing" : "poster";
  }

  /**
   * Which of the controls there are.
   * @param {boolean} shown
   * @param {Mode} mode
   */
  showControls(shown, mode) {
    this.#controls.hidden = !shown;
    this.#chip.hidden = !shown;
    this.#caption.hidden = !shown || mode === "view";
    this.#mute.hidden = mode === "view";
    this.#end.setAttribute("aria-label", mode === "view" ? "Stop watching" : "End the call");
    this.#end.title = this.#end.getAttribute("aria-label") ?? "";
  }

  /**
   * What the element is in the middle of: no call, a call without a picture (yet, or for now), a call with one.
   * @param {Phase} phase
   */
  showPhase(phase) {
    this.#stage.dataset.phase = phase;
    const inCall = phase !== "off";
    this.#focusFell ||= !inCall && this.#root.activeElement === this.#end;
    this.#end.hidden = !inCall;
    this.#poster.hidden = phase === "live" || !this.#poster.hasAttribute("src");
    if (phase === "live") {
      this.hideNotice();
    }
  }

  /** @param {CallState} state */
  showState(state) {
    const { word, caption } = stateWords(state);
    this.#chip.dataset.state = state;
    this.#state.textContent = word;
    this.#caption.textContent = caption;
  }

  /**
   * Lays words over the stage.
   * @param {Notice} notice
   * @param {number} [untilMs] A countdown runs to this `performance.now()`.
   */
  showNotice(notice, untilMs) {
    const hadFocus = this.#overlay.contains(this.#root.activeElement) || this.#focusFell;
    this.#notice.dataset.tone = notice.tone;
    draw(this.#noticeIcon, notice.icon);
    this.#title.textContent = notice.title;
    this.#text.textContent = notice.text;
    this.#hint.textContent = notice.hint ?? "";
    this.#hint.hidden = notice.hint === undefined;
    const hasNewActions = this.#showActions(notice.actions);
    this.#count(untilMs);
    this.#overlay.hidden = false;
    this.#focusFell = false;
    if (hadFocus && hasNewActions) {
      // Whoever uses the keyboard goes on where the button was that is gone now.
      (this.#actions.querySelector("button") ?? this.#stage).focus();
    }
  }

  /** The countdown's attempt has begun. */
  showAttempt() {
    if (!this.#countdown.hidden) {
      this.#count(performance.now());
    }
  }

  hideNotice() {
    const hadFocus = this.#overlay.contains(this.#root.activeElement);
    this.#count(undefined);
    this.#overlay.hidden = true;
    if (hadFocus) {
      (this.#end.checkVisibility() ? this.#end : this.#stage).focus();
    }
  }

  /** @param {string} text A short line over the picture; "" for none. */
  showBanner(text) {
    this.#banner.textContent = text;
    this.#banner.hidden = text === "";
  }

  /**
   * Tells a screen reader, but nothing twice in a row.
   * @param {string} text
   * @param {boolean} [urgent]
   */
  announce(text, urgent = false) {
    const place = urgent ? this.#alert : this.#status;
    if (place.textContent !== text) {
      place.textContent = text;
    }
  }

  /** @param {boolean} muted Whether the visitor's voice is kept back. */
  showMuted(muted) {
    this.#mute.setAttribute("aria-pressed", String(muted));
    draw(this.#muteIcon, muted ? "mic-off" : "mic");
  }

  /**
   * @param {boolean} silent Whether the avatar's sound is off.
   * @param {boolean} offered Whether a button over the picture offers it.
   */
  showSilent(silent, offered) {
    this.#silence.setAttribute("aria-pressed", String(silent));
    draw(this.#silenceIcon, silent ? "sound-off" : "sound");
    const hadFocus = this.#root.activeElement === this.#unmute;
    this.#unmute.hidden = !(silent && offered);
    if (hadFocus && this.#unmute.hidden) {
      (this.#silence.checkVisibility() ? this.#silence : this.#stage).focus();
    }
  }

  /** @param {number} volume 0..1 */
  showVolume(volume) {
    this.#slider.valueAsNumber = Math.round(volume * 100);
    this.#slider.style.setProperty("--filled", `${this.#slider.value}%`);
  }

  /** @param {number | null} seconds The call's length; null without a call. */
  showClock(seconds) {
    this.#clock.hidden = seconds === null || this.#chip.hidden;
    if (seconds !== null) {
      this.#time.textContent = durationOf(seconds);
    }
  }

  /**
   * @param {Action[]} actions
   * @returns {boolean} Whether there are other buttons now. The same ones are left alone, and so is the focus on them.
   */
  #showActions(actions) {
    const key = JSON.stringify(actions);
    if (key === this.#actionsKey) {
      return this.#focusFell;
    }
    this.#actionsKey = key;
    this.#actions.replaceChildren(...actions.map((action, index) => this.#button(action, index === 0)));
    this.#actions.hidden = actions.length === 0;
    return true;
  }

  /**
   * @param {Action} action
   * @param {boolean} first
   */
  #button({ name, label }, first) {
    const leads = first && name !== "stop";
    const part = leads ? "action first-action" : "action";
    const button = element("button", { part, class: leads ? "action first" : "action", type: "button" }, label);
    button.dataset.action = name;
    button.addEventListener("click", () => this.#emit("action", name));
    return button;
  }

  /** @param {number | undefined} untilMs */
  #count(untilMs) {
    clearInterval(this.#counting);
    this.#countdown.hidden = untilMs === undefined;
    if (untilMs !== undefined) {
      const show = () => {
        const seconds = Math.max(0, Math.ceil((untilMs - performance.now()) / 1000));
        this.#countdown.textContent = seconds === 0 ? "Trying now" : `Trying again in ${seconds} s`;
      };
      this.#counting = setInterval(show, 250);
      show();
    }
  }

  /**
   * @param {string} name
   * @param {unknown} [detail]
   */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** @typedef {"off" | "calling" | "live"} Phase */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** @param {keyof typeof ICONS} name */
function icon(name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("viewBox", "0 0 24 24");
  made.setAttribute("aria-hidden", "true");
  made.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  draw(made, name);
  return made;
}

/**
 * @param {SVGSVGElement} place
 * @param {keyof typeof ICONS} name
 */
function draw(place, name) {
  place.firstElementChild?.setAttribute("d", ICONS[name]);
}

/**
 * @param {string} word
 * @param {string} label What it does, in full.
 * @param {SVGSVGElement} sign
 */
function control(word, label, sign) {
  const attributes = { part: "control", class: "control", type: "button", "aria-label": label, title: label };
  return element("button", attributes, sign, element("span", {}, word));
}

/**
 * @param {number} seconds
 * @returns {string} "0:07", "12:34", "1:02:03"
 */
export function durationOf(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  const shown = parts[0] === 0 ? parts.slice(1) : parts;
  return shown.map((part, index) => (index === 0 ? String(part) : String(part).padStart(2, "0"))).join(":");
}

// --------------------------------------------------------------------------------------------------------- the element
// Decides what follows from what the visitor does, what the page around asks, and what happens to the call.

/** Where this module was loaded from, which is a server's address unless the attribute src says otherwise. */
const HOME = new URL(import.meta.url).origin;
/** A microphone that is not open by now waits for the visitor's word. */
const ASKING_MS = 500;
/** While the server starts, its progress is shown this often. */
const LOOK_AGAIN_MS = 1_500;
const BANNER_MS = 6_000;

/**
 * @typedef {{ source: "microphone", device: string } | { source: "sample" }
 *     | { source: "track", track: MediaStreamTrack }} Choice
 */

/** The element. README.md says what is public of it. */
export class EchoRtc extends HTMLElement {
  static observedAttributes = ["src", "avatar", "token", "mode", "name", "muted", "controls", "poster", "sample"];

  #looks = new Looks(this.attachShadow({ mode: "closed", delegatesFocus: true }));
  #states = this.attachInternals().states;
  #link = new LinkMeter();
  /** @type {Choice} */ #choice = { source: "microphone", device: "" };
  /** What the present voice was opened for. */
  #sent = this.#choice;
  /** The microphone to go back to from another voice. */
  #device = "";
  /** @type {EchoCall | null} */ #call = null;
  /** @type {Voice | null} */ #voice = null;
  /** @type {((isLive: boolean) => void)[]} Who waits for the picture. */ #starters = [];
  /** Goes up with each change of the voice; what was asked for before then comes too late. */
  #voiceTurn = 0;
  /** Goes up with each server that is asked; what another one answers comes too late. */
  #lookTurn = 0;
  #hushed = false;
  /** Whether it is the browser that took the sound away. */
  #soundless = false;
  /** What the server says while it is starting; null once it has started. */
  /** @type {string | null} */ #starting = null;
  /** @type {Avatar[]} Empty until the server has said which it has. */ #avatars = [];
  /** Whether the visitor is being greeted, and nothing else is on the stage. */
  #greeting = true;
  /** @type {CallState} */ #state = "new";
  /** @type {number | null} `performance.now()` when the picture first came. */ #liveSince = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #bannerTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #lookTimer;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #clockTimer;
  #leave = () => this.#call?.close(true);
  #devicesChanged = () => {
    if (this.#voice?.source === "microphone" && this.#voice.track.readyState === "ended") {
      this.#voiceLost(this.#voice);
    }
  };

  constructor() {
    super();
    const looks = this.#looks;
    const on = (/** @type {string} */ name, /** @type {(detail: any) => void} */ handle) =>
      looks.addEventListener(name, (event) => handle(detailOf(event)));
    on("action", (/** @type {ActionName} */ name) => this.#act(name));
    on("mute", () => (this.microphoneMuted = !this.#hushed));
    on("silence", () => (this.muted = !this.muted));
    on("unmute", () => (this.muted = false));
    on("volume", () => (this.volume = looks.volume));
    looks.video.addEventListener("pause", () => this.#onPause());
    this.#enter("new");
  }

  connectedCallback() {
    addEventListener("pagehide", this.#leave);
    navigator.mediaDevices?.addEventListener?.("devicechange", this.#devicesChanged);
    this.#looks.showControls(this.hasAttribute("controls"), this.#mode);
    if (this.#call === null) {
      this.#greetAnew();
      if (this.hasAttribute("autoplay")) {
        this.start();
      }
    }
  }

  /** An element that only moves within the page goes on; one that is taken out gives everything back. */
  disconnectedCallback() {
    queueMicrotask(() => {
      if (!this.isConnected) {
        removeEventListener("pagehide", this.#leave);
        navigator.mediaDevices?.removeEventListener?.("devicechange", this.#devicesChanged);
        this.stop();
        this.#lookTurn += 1;
        clearTimeout(this.#lookTimer);
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
        this.#looks.showControls(now !== null, this.#mode);
        this.#showSilence();
        break;
      case "poster":
        this.#showPoster();
        break;
      case "avatar":
        this.#showPoster(); // asked for by the next start
        break;
      default:
        if (before !== now && this.isConnected && this.#call === null) {
          this.#looks.showControls(this.hasAttribute("controls"), this.#mode);
          this.#greetAnew();
        }
    }
  }

  /** What the call is doing. */
  get state() {
    return this.#state;
  }

  /** The avatar's sound and picture, for a page that does more with them; null while there is none. */
  get media() {
    return /** @type {MediaStream | null} */ (this.#looks.video.srcObject);
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
    return this.#hushed;
  }

  set microphoneMuted(muted) {
    this.#hushed = muted;
    if (this.#voice !== null) {
      this.#voice.track.enabled = !muted;
    }
    this.#looks.showMuted(muted);
    this.#looks.announce(muted ? ANNOUNCEMENTS.muted : ANNOUNCEMENTS.unmuted);
  }

  /** The avatar's volume, 0..1; setting it also ends a silence. */
  get volume() {
    return this.#looks.video.volume;
  }

  set volume(volume) {
    const heard = Number.isFinite(volume) ? Math.min(1, Math.max(0, volume)) : 1;
    this.#looks.video.volume = heard;
    this.#looks.showVolume(heard);
    this.muted = heard === 0;
    this.dispatchEvent(new Event("volumechange"));
  }

  /**
   * Opens the call or the view; one that is open is ended first.
   * @returns {Promise<boolean>} Whether a picture came; false once it is over without one.
   */
  start() {
    this.stop();
    const isLive = new Promise((/** @type {(isLive: boolean) => void} */ resolve) => this.#starters.push(resolve));
    const server = this.#server();
    const wish = { mode: this.#mode, avatar: this.getAttribute("avatar") ?? "", name: this.getAttribute("name") ?? "" };
    const trouble =
      globalThis.RTCPeerConnection === undefined ? this.#words.impossible("unsupported")
      : server === null ? this.#words.impossible("address")
      : wish.mode === "view" && wish.name === "" ? this.#words.impossible("nameless")
      : null;
    if (server === null || trouble !== null) {
      this.#settle(false);
      this.#showTrouble(trouble ?? this.#words.impossible("address"));
      return isLive;
    }
    const call = new EchoCall(server, wish);
    this.#call = call;
    this.#follow(call);
    this.#greeting = false;
    this.#showPhase("calling");
    this.#enter("connecting");
    this.#looks.showNotice(this.#words.connecting());
    this.#looks.announce("", true);
    this.#looks.announce(this.#words.connecting().title);
    if (wish.mode === "view") {
      call.start(null);
    } else {
      setTimeout(() => {
        if (this.#call === call && call.state === "new" && this.#choice.source === "microphone") {
          this.#looks.showNotice(this.#words.asking());
        }
      }, ASKING_MS);
      this.#takeVoice(call);
    }
    return isLive;
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
    return this.getAttribute("mode") === "view" ? "view" : "call";
  }

  get #words() {
    return new Words(this.hasAttribute("sample"));
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
    this.#looks.showPoster(this.getAttribute("poster") ?? avatar?.preview ?? "");
  }

  #greet() {
    this.#greeting = true;
    this.#looks.showNotice(this.#words.welcome(this.#mode, this.#choice.source, this.#starting));
  }

  /** Greets the visitor on the part of a server that may have changed. */
  #greetAnew() {
    clearTimeout(this.#lookTimer);
    this.#avatars = [];
    this.#showPoster();
    if (globalThis.RTCPeerConnection === undefined) {
      this.#showTrouble(this.#words.impossible("unsupported"));
      return;
    }
    this.#enter("new");
    this.#greet();
    this.#look(++this.#lookTurn, 0);
  }

  /**
   * Finds out what the server has to offer, and looks again until it is ready.
   * @param {number} turn
   * @param {number} failures In a row so far.
   */
  async #look(turn, failures) {
    const server = this.#server();
    /** @type {Refusal | null} */ let refusal = null;
    try {
      if (server !== null) {
        await this.#showServer(server, () => turn === this.#lookTurn);
      }
    } catch (error) {
      if (!(error instanceof Refusal)) {
        throw error; // a fault of this module, which the console should show
      }
      refusal = error;
    }
    if (turn !== this.#lookTurn) {
      return;
    }
    const isStarting = refusal?.kind === "starting";
    this.#starting = isStarting ? refusal.detail : null;
    if (refusal !== null) {
      const waitMs = isStarting ? LOOK_AGAIN_MS : 1000 * backOffS(failures, Math.random());
      this.#lookTimer = setTimeout(() => this.#look(turn, isStarting ? 0 : failures + 1), waitMs);
    }
    if (this.#greeting) {
      this.#greet();
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
    this.#looks.showRatio(configuration.width / configuration.height);
    this.#tell("configuration", configuration);
    // It has none before it has started.
    if (this.#mode === "call" && configuration.avatars.length > this.#avatars.length) {
      const avatars = await server.avatars();
      if (!isWanted()) {
        return;
      }
      this.#avatars = avatars;
      this.#showPoster();
      this.#tell("avatars", avatars);
    }
    await server.ready();
  }

  /** @param {ActionName} name */
  #act(name) {
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
    this.#tellVoice();
    if (this.#call !== null) {
      return this.#mode === "view" || this.#takeVoice(this.#call);
    }
    if (start) {
      return this.start();
    }
    if (this.#greeting && this.isConnected) {
      this.#greet();
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
    voice.track.enabled = !this.#hushed;
    voice.addEventListener("lost", () => this.#voiceLost(voice));
    this.#tellVoice();
    if (call.state === "new") {
      this.#looks.showNotice(this.#words.connecting());
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
      this.#tellVoice();
      this.#showTrouble(notice);
      return;
    }
    this.#tellError(notice);
    if (this.#voice?.track.readyState === "live") {
      this.#choice = this.#sent;
      this.#tellVoice();
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
    if (state === "connecting") {
      this.#looks.showAttempt();
    } else if (state === "behind") {
      this.#looks.announce(ANNOUNCEMENTS.behind);
    }
  }

  /** @param {MediaStream} media */
  #onMedia(media) {
    this.#link.reset();
    this.#looks.video.srcObject = media;
    this.#play();
  }

  /** Browsers pause what a script gives its sound back without a tap; phones pause what is put away. */
  #onPause() {
    if (this.#states.has("live") && this.media?.active) {
      this.#play();
    }
  }

  async #play() {
    const { video } = this.#looks;
    const media = video.srcObject;
    if (!(await this.#plays(media)) || video.srcObject !== media || this.#call === null) {
      return;
    }
    this.#liveSince ??= performance.now();
    this.#clockTimer ??= setInterval(() => this.#tick(), 1_000);
    this.#tick();
    this.#showBanner("");
    this.#showPhase("live");
    this.#showSilence();
    this.#looks.announce(this.#mode === "view" ? ANNOUNCEMENTS.watching : ANNOUNCEMENTS.calling);
    this.#settle(true);
    this.dispatchEvent(new Event("playing"));
  }

  /**
   * Plays, without sound where the browser wants a tap for it, and asks for that tap where it plays nothing at all.
   * @param {MediaProvider | null} media
   * @returns {Promise<boolean>} Whether it plays.
   */
  async #plays(media) {
    const { video } = this.#looks;
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
        this.#soundless = true;
        this.muted = true;
      }
    }
    if (this.#soundless) {
      this.#soundless = false;
      this.muted = false;
    }
    this.#looks.showNotice(this.#words.tapToPlay());
    return false;
  }

  /**
   * @param {EchoCall} call
   * @param {StreamStatistics | null} stream
   */
  async #onStatistics(call, stream) {
    const report = await call.report();
    if (report !== null && this.#call === call) {
      this.#tell("stats", { stream, link: this.#link.read(report) });
    }
  }

  /** @param {Wait} wait */
  #onWait(wait) {
    const notice = this.#words.waiting(wait);
    this.#enter("waiting", { why: wait.why, message: `${notice.title}. ${notice.text}`, retryMs: wait.delayMs });
    this.#showBanner("");
    this.#showPhase("calling");
    this.#looks.showNotice(notice, wait.quiet ? undefined : performance.now() + wait.delayMs);
    this.#looks.announce(`${notice.title}. ${notice.text}`, wait.why === "lost");
  }

  /** @param {End} end */
  #onEnd(end) {
    this.#call = null;
    this.#voiceTurn += 1;
    this.#voice?.close();
    this.#voice = null;
    this.#liveSince = null;
    clearInterval(this.#clockTimer);
    this.#clockTimer = undefined;
    this.#looks.video.srcObject = null;
    this.#showPhase("off");
    this.#looks.showClock(null);
    this.#showBanner("");
    this.#showSilence();
    const notice = this.#words.ended(end);
    if (notice === null) {
      if (this.#choice.source === "sample") {
        this.#choice = { source: "microphone", device: this.#device };
      }
      this.#enter("new");
      if (this.isConnected) {
        this.#greet();
      }
      this.#looks.announce(ANNOUNCEMENTS.stopped);
    } else {
      this.#enter("closed", { why: end.why, message: `${notice.title}. ${notice.text}` });
      this.#showTrouble(notice);
    }
    this.#tellVoice();
    this.#settle(false);
  }

  /**
   * @param {CallState} state
   * @param {Record<string, unknown>} [more]
   */
  #enter(state, more) {
    this.#looks.showState(state);
    if (state !== this.#state || more !== undefined) {
      this.#states.delete(this.#state);
      this.#state = state;
      this.#tell("state", { state, ...more });
    }
    this.#states.add(state);
  }

  /** @param {Phase} phase */
  #showPhase(phase) {
    this.#looks.showPhase(phase);
    this.#states[phase === "live" ? "add" : "delete"]("live");
  }

  /** @param {Notice} notice */
  #showTrouble(notice) {
    this.#greeting = false;
    this.#looks.showNotice(notice);
    this.#looks.announce(`${notice.title}. ${notice.text}`, true);
    this.#tellError(notice);
  }

  /** @param {boolean} silent */
  #silence(silent) {
    this.#looks.video.muted = silent;
    this.#soundless &&= silent;
    this.#showSilence();
    this.dispatchEvent(new Event("volumechange"));
  }

  /** Without controls, or where the browser took it, the sound is offered over the picture. */
  #showSilence() {
    const offered = this.#liveSince !== null && (this.#soundless || !this.hasAttribute("controls"));
    this.#looks.showSilent(this.muted, offered);
  }

  /**
   * @param {string} text
   * @param {boolean} [passing] Whether it goes away by itself.
   */
  #showBanner(text, passing = true) {
    clearTimeout(this.#bannerTimer);
    this.#looks.showBanner(text);
    if (text !== "") {
      this.#looks.announce(text);
      if (passing) {
        this.#bannerTimer = setTimeout(() => this.#looks.showBanner(""), BANNER_MS);
      }
    }
  }

  #tick() {
    if (this.#liveSince !== null) {
      this.#looks.showClock((performance.now() - this.#liveSince) / 1000);
    }
  }

  /** @param {boolean} isLive */
  #settle(isLive) {
    for (const resolve of this.#starters.splice(0)) {
      resolve(isLive);
    }
  }

  #tellVoice() {
    this.#tell("voice", { source: this.#choice.source, track: this.#voice?.track ?? null });
  }

  /** @param {Notice} notice */
  #tellError({ code, title, text }) {
    this.#tell("error", { code, message: `${title}. ${text}` });
  }

  /**
   * @param {string} name
   * @param {unknown} detail
   */
  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

if (customElements.get("echo-rtc") === undefined) {
  customElements.define("echo-rtc", EchoRtc);
}
