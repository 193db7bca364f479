/**
 * What the page says: every state and every trouble in words that tell a visitor what is and what to do.
 *
 * Text only. Knows no elements and no connection; whoever shows the words decides where.
 */

/** @import { CallState, End, Wait } from "./call.js" */
/** @import { MicrophoneFault } from "./microphone.js" */

/**
 * @typedef {"start" | "microphone" | "sample" | "retry" | "stop" | "play"} ActionName
 * start: with the voice that is chosen; microphone, sample: with that one, in the call there is or in a new one.
 */

/** @typedef {{ name: ActionName, label: string }} Action */

/**
 * @typedef {object} Notice What lies over the stage while no picture plays there.
 * @property {string} icon Name of a symbol of the page.
 * @property {"calm" | "busy" | "warning"} tone
 * @property {string} title
 * @property {string} text
 * @property {string} [hint] A further, quieter sentence.
 * @property {Action[]} actions The first is the one to take.
 */

/** @typedef {{ word: string, caption: string }} StateWords */

/** @type {Action} */ const AGAIN = { name: "start", label: "Try again" };
/** @type {Action} */ const SAMPLE = { name: "sample", label: "Use the sample voice" };
/** @type {Action} */ const MICROPHONE = { name: "microphone", label: "Use the microphone" };
/** @type {Action} */ const NOW = { name: "retry", label: "Try now" };
/** @type {Action} */ const CANCEL = { name: "stop", label: "Cancel" };

/** @type {Readonly<Record<CallState, StateWords>>} */
const STATES = Object.freeze({
  new: { word: "Ready", caption: "Nothing is sent before you start" },
  connecting: { word: "Connecting", caption: "Opening the line to the avatar" },
  idle: { word: "Idle", caption: "Waiting for a voice" },
  speaking: { word: "Speaking", caption: "The avatar is saying your words" },
  behind: { word: "Behind", caption: "Rendering is late: the picture is held, the sound goes on" },
  waiting: { word: "Waiting", caption: "There is no connection at the moment" },
  closed: { word: "Ended", caption: "Nothing is sent any more" },
});

/** @param {CallState} state */
export function stateWords(state) {
  return STATES[state];
}

/**
 * Before a call.
 * @param {"microphone" | "sample"} source The voice that is chosen.
 * @param {string | null} starting What the server says while it is starting; null once it has started.
 * @returns {Notice}
 */
export function welcome(source, starting) {
  /** @type {Action[]} */
  const actions =
    source === "microphone"
      ? [{ name: "microphone", label: "Start the call" }, { ...SAMPLE, label: "Try the sample voice" }]
      : [{ name: "sample", label: "Start with the sample voice" }, MICROPHONE];
  if (starting !== null) {
    return { ...loading(starting), text: "You can start already: the call then begins by itself.", actions };
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
export function asking() {
  return {
    icon: "mic",
    tone: "busy",
    title: "May this page hear you?",
    text: "Your browser asks for the microphone. Allow it, and the call begins.",
    hint: "Sound goes to this server only, and only during a call.",
    actions: [SAMPLE, CANCEL],
  };
}

/** @returns {Notice} */
export function connecting() {
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
export function withoutMicrophone(fault, host) {
  /** @type {Readonly<Record<MicrophoneFault, [title: string, text: string]>>} */
  const words = {
    insecure: [
      "No microphone at this address",
      `Browsers give a microphone to secure pages only, and http://${host} is not one. ` +
        "Open this page by https://, or on the server's own machine by http://localhost.",
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
  };
  const [title, text] = words[fault];
  const actions = fault === "insecure" ? [SAMPLE] : [AGAIN, SAMPLE];
  return { icon: fault === "insecure" ? "lock" : "mic-off", tone: "warning", title, text, actions };
}

/** @returns {Notice} */
export function withoutSample() {
  return {
    icon: "wave",
    tone: "warning",
    title: "The sample voice cannot be played",
    text: "Its file could not be loaded from the server. Try again, or use your microphone.",
    actions: [AGAIN, MICROPHONE],
  };
}

/**
 * For browsers in which no call is possible.
 * @returns {Notice}
 */
export function withoutWebRtc() {
  return {
    icon: "warning",
    tone: "warning",
    title: "This browser cannot make calls",
    text: "It has no WebRTC, or it is switched off. A current Chrome, Edge, Firefox or Safari can.",
    actions: [],
  };
}

/**
 * Between two attempts.
 * @param {Wait} wait
 * @returns {Notice}
 */
export function waiting(wait) {
  switch (wait.why) {
    case "starting":
      return loading(wait.detail);
    case "full":
      return {
        icon: "full",
        tone: "warning",
        title: "All places are taken",
        text: "This server holds as many calls as it can. Yours begins as soon as one of them ends.",
        actions: [NOW, CANCEL],
      };
    case "stopping":
      return {
        icon: "clock",
        tone: "warning",
        title: "The server is restarting",
        text: "It takes no calls at the moment. Yours begins when it is back.",
        actions: [NOW, CANCEL],
      };
    case "blocked":
      return {
        icon: "unplugged",
        tone: "warning",
        title: "Sound and picture find no way",
        text: "The server answers, but its media does not arrive. A firewall may be blocking UDP.",
        actions: [NOW, CANCEL],
      };
    case "unreachable":
      return {
        icon: "unplugged",
        tone: "warning",
        title: wait.reconnecting ? "The connection was lost" : "The server cannot be reached",
        text: navigator.onLine
          ? "The server does not answer. Either it is not running, or the network in between is down."
          : "This device is offline. The call goes on when the network is back.",
        actions: [NOW, CANCEL],
      };
    case "lost":
      return {
        icon: "unplugged",
        tone: "warning",
        title: "The connection was lost",
        text: "Reconnecting. Keep this page open.",
        actions: [NOW, CANCEL],
      };
  }
}

/**
 * After a call.
 * @param {End} end
 * @returns {Notice | null} null where it was the visitor's own wish.
 */
export function ended(end) {
  switch (end.why) {
    case "ended":
      return {
        icon: "phone-end",
        tone: "warning",
        title: "The server ended the call",
        text: sentence(end.detail, "It gave no reason."),
        actions: [{ name: "start", label: "Start again" }],
      };
    case "rejected":
      return {
        icon: "warning",
        tone: "warning",
        title: "The server refused the call",
        text: sentence(end.detail, "It gave no reason."),
        actions: [AGAIN],
      };
    case "gave-up":
      return {
        icon: "unplugged",
        tone: "warning",
        title: "The server stays out of reach",
        text:
          end.last === "blocked"
            ? "It answers, but its media never arrives. Have the firewall let UDP through, then try again."
            : "Several attempts have failed. Look at the server and the network, then try again.",
        actions: [AGAIN],
      };
    case "closed":
      return null;
  }
}

/**
 * When the browser wants a tap before it plays sound.
 * @returns {Notice}
 */
export function tapToPlay() {
  return {
    icon: "play",
    tone: "calm",
    title: "Tap to watch and listen",
    text: "Your browser plays sound only after a tap.",
    actions: [{ name: "play", label: "Play" }],
  };
}

/** Short lines over the running picture. */
export const BANNERS = Object.freeze({
  unsteady: "The connection is unsteady",
  micMoved: "The microphone is gone; another one took over",
  micLost: "The microphone is gone. Plug it in, or switch to the sample voice",
  voiceFailed: "That voice cannot be used; the one before goes on",
});

/** What a screen reader is told beyond the notices. */
export const ANNOUNCEMENTS = Object.freeze({
  connected: "Connected. The avatar speaks with your voice.",
  stopped: "The call has ended.",
  muted: "Muted: the avatar hears silence.",
  unmuted: "No longer muted.",
  behind: "The picture is late; the sound goes on.",
});

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
