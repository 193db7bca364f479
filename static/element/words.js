/**
 * Every state and every trouble in words that tell a visitor what it is and what to do. Text only.
 */

/** @import { CallState, End, Wait } from "./call.js" */
/** @import { ICONS } from "./icons.js" */
/** @import { MicrophoneFault } from "./voice.js" */

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
export const BANNERS = Object.freeze({
  unsteady: "The connection is unsteady",
  micMoved: "The microphone is gone; another one took over",
  micLost: "The microphone is gone. Plug it in, or choose another voice",
  voiceFailed: "That voice cannot be used; the one before goes on",
});

/** What a screen reader is told beyond the notices. */
export const ANNOUNCEMENTS = Object.freeze({
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
