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

/**
 * @typedef {"call" | "view" | "text"} Mode call: a voice goes out, its avatar comes back. view: the avatar of another stream.
 * text: an avatar of one's own without a voice, which says text.
 */

/** @typedef {"microphone" | "sample" | "track"} Source Where the voice comes from; track: from the page around. */

/** @typedef {CallState | "hearing"} ShownState hearing: a voice goes in, and the avatar has not begun to say it yet. */

/**
 * @typedef {object} Notice What lies over the stage while no picture plays there.
 * @property {string} [code] Of a trouble: the "error" event's.
 * @property {keyof typeof ICONS} icon
 * @property {"calm" | "busy" | "warning"} tone
 * @property {string} chip The state in a word or two, shown in the corner of the stage.
 * @property {string} title
 * @property {string} text
 * @property {string} [hint] A further, quieter sentence.
 * @property {boolean} [asksToken] Whether a field for a token is shown; its button takes the place of the first action.
 * @property {Action[]} actions The first is the one to take.
 */

/** @type {Action} */ const AGAIN = { name: "start", label: "Try again" };
/** @type {Action} */ const SAMPLE = { name: "sample", label: "Use the sample voice" };
/** @type {Action} */ const MICROPHONE = { name: "microphone", label: "Use the microphone" };
/** @type {Action} */ const NOW = { name: "retry", label: "Try now" };
/** @type {Action} */ const CANCEL = { name: "stop", label: "Cancel" };

/** @type {Readonly<Record<ShownState, { word: string, caption: string }>>} */
const STATE_WORDS = Object.freeze({
  new: { word: "Ready", caption: "" },
  connecting: { word: "Connecting", caption: "" },
  idle: { word: "Idle", caption: "Say something" },
  hearing: { word: "Hearing you", caption: "The avatar says it in a moment" },
  listening: { word: "Listening", caption: "The avatar listens" },
  speaking: { word: "Speaking", caption: "The avatar is saying your words" },
  behind: { word: "Behind", caption: "The picture is late; the sound goes on" },
  watching: { word: "Live", caption: "" },
  waiting: { word: "Waiting", caption: "" },
  closed: { word: "Ended", caption: "" },
});

/** @type {Readonly<Partial<Record<ShownState, string>>>} The line below, where the avatar says text. */
const TEXT_CAPTIONS = Object.freeze({ idle: "Type what it is to say", speaking: "The avatar is saying your text" });

/** Short lines over the running picture. */
export const BANNERS = Object.freeze({
  unsteady: "The connection is unsteady",
  micMoved: "The microphone is gone; another one took over",
  micLost: "The microphone is gone. Plug it in, or choose another voice",
  voiceFailed: "That voice cannot be used; the one before goes on",
  muted: "You are muted",
  unheard: "You are muted. Unmute to be heard",
  endByKey: "Press Esc again to end the call",
  interrupted: "Interrupted",
});

/** What stands over the picture unless the server's operator says otherwise. */
export const MARK = "AI-generated";

/** What a screen reader is told beyond the notices. */
export const ANNOUNCEMENTS = Object.freeze({
  calling: "Connected. The avatar speaks with your voice.",
  watching: "Connected. The avatar is live.",
  typing: "Connected. The avatar says what you type.",
  muted: "Muted: the avatar hears silence.",
  unmuted: "No longer muted.",
  behind: "The picture is late; the sound goes on.",
  recorded: "This is being recorded.",
  unrecorded: "The recording has ended.",
});

/**
 * @param {ShownState} state
 * @param {boolean} isText Whether the avatar says text.
 */
export function stateWords(state, isText) {
  const words = STATE_WORDS[state];
  return { ...words, caption: (isText ? TEXT_CAPTIONS[state] : undefined) ?? words.caption };
}

/**
 * A text that could not be said.
 * @param {string} detail The server's phrase.
 */
export function unsaid(detail) {
  return sentence(detail, "That could not be said.");
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
   * @param {boolean} isStarting Whether the server is still loading.
   * @returns {Notice}
   */
  welcome(mode, source, isStarting) {
    const actions =
      mode === "view" ? [action("start", "Watch")]
      : mode === "text" ? [action("start", "Start")]
      : this.#voices(source, "Start the call");
    if (isStarting) {
      return { ...loading(), text: "You can start already: the call then begins by itself.", actions };
    }
    if (mode === "view") {
      return {
        icon: "play",
        tone: "calm",
        chip: "Ready",
        title: "Watch the avatar",
        text: "The avatar says what a live speaker says. Picture and sound begin with a tap.",
        actions,
      };
    }
    if (mode === "text") {
      return {
        icon: "mark",
        tone: "calm",
        chip: "Ready",
        title: "Type, and a face says it",
        text: "This person says your text with the server's voice. No microphone is used.",
        actions,
      };
    }
    return {
      icon: "mark",
      tone: "calm",
      chip: "Ready",
      title: "Give your voice a face",
      text: "You speak, and a second later this person says your words.",
      hint: "Headphones are best. Nothing is sent before you start.",
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
      chip: "Asking",
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
      chip: "Connecting",
      title: "Connecting",
      text: "This takes a second or two.",
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
      chip: fault === "ended" ? "Needs a voice" : "Needs a microphone",
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
      chip: "Needs a voice",
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
      nameless: [
        "No stream is named",
        "Give the name of the stream that is to be watched: in the attribute name of <echo-rtc>, or as &name=... in the " +
          "address of /embed.",
      ],
      address: [
        "The server has no address",
        "Set the attribute src of <echo-rtc> to an address that begins with https://.",
      ],
    };
    const [title = "", text = ""] = words[why];
    return { code: why, icon: "warning", tone: "warning", chip: "Not possible", title, text, actions: [] };
  }

  /**
   * Between two attempts.
   * @param {Wait} wait
   * @param {string} name Of the stream, or "".
   * @returns {Notice}
   */
  waiting(wait, name) {
    const actions = [NOW, CANCEL];
    switch (wait.why) {
      case "starting":
        return loading();
      case "full":
        return {
          ...warning("full", "Full", "All places are taken", inQueue(wait.position)),
          actions: wait.position === null ? actions : [CANCEL],
        };
      case "limited":
        return {
          ...warning("clock", "Waiting", "A short pause", "There were many calls from here. Yours begins by itself."),
          actions,
        };
      case "taken":
        return {
          ...warning("full", "Name in use", "The name is in use", "Your call begins when it is free."),
          actions,
        };
      case "offline":
        return { ...offline(name, wait.reconnecting), actions };
      case "stopping":
        return {
          ...warning("clock", "Restarting", "The server is restarting", "Your call goes on when it is back."),
          actions,
        };
      case "blocked":
        return {
          ...warning(
            "unplugged",
            "No connection",
            "No sound and no picture",
            "The server answers, but its media does not arrive. A firewall may be blocking UDP.",
          ),
          actions,
        };
      case "unreachable":
        return {
          ...warning(
            "unplugged",
            "No connection",
            wait.reconnecting ? "The server has gone away" : "The server cannot be reached",
            navigator.onLine
              ? "Either it is not running, or the network in between is down."
              : "This device is offline. The call goes on when the network is back.",
          ),
          actions,
        };
      case "lost":
        return {
          ...warning("unplugged", "No connection", "The connection was lost", "Reconnecting. Keep this page open."),
          actions,
        };
    }
  }

  /**
   * After a call that the visitor ended.
   * @param {Mode} mode
   * @param {Source} source The voice that is chosen.
   * @param {string} length Of the call, as "2:34".
   * @returns {Notice}
   */
  goodbye(mode, source, length) {
    const isView = mode === "view";
    return {
      icon: "phone-end",
      tone: "calm",
      chip: "Ended",
      title: isView ? "You have stopped watching" : "The call has ended",
      text: isView ? `You watched for ${length}.` : `It lasted ${length}.`,
      actions:
        isView ? [action("start", "Watch again")]
        : mode === "text" ? [action("start", "Start again")]
        : this.#voices(source, "Start again"),
    };
  }

  /**
   * After a call that ended otherwise.
   * @param {End & { why: Exclude<End["why"], "closed"> }} end
   * @param {string | null} length Of the call, as "2:34"; null where it never began.
   * @returns {Notice}
   */
  ended(end, length) {
    const said = sentence(end.detail, "It gave no reason.");
    const lasted = length === null ? "" : ` The call lasted ${length}.`;
    switch (end.why) {
      case "ended":
        return {
          ...warning("phone-end", "Ended", "The server ended the call", said + lasted),
          code: end.why,
          actions: [action("start", "Start again")],
        };
      case "rejected":
        return {
          ...warning("warning", "Refused", "The server refused the call", said),
          code: end.why,
          actions: [AGAIN],
        };
      case "unauthorized":
        return {
          ...warning(
            "lock",
            "Needs permission",
            "This call needs permission",
            "The server asks for a token. Its operator can give you one.",
          ),
          code: end.why,
          ...(end.detail === "" ? {} : { hint: end.detail }),
          asksToken: true,
          actions: [action("start", "Start with this token")],
        };
      case "gave-up":
        return {
          ...warning(
            "unplugged",
            "No connection",
            "No connection to the server",
            end.last === "blocked"
              ? "It answers, but its media never arrives. Have the firewall let UDP through, then try again."
              : `Several attempts have failed. Check the server and the network, then try again.${lasted}`,
          ),
          code: end.why,
          actions: [AGAIN],
        };
    }
  }

  /**
   * When the browser wants a tap before it plays anything.
   * @returns {Notice}
   */
  tapToPlay() {
    return {
      icon: "play",
      tone: "calm",
      chip: "Ready",
      title: "Tap to watch and listen",
      text: "Your browser plays only after a tap.",
      actions: [action("play", "Play")],
    };
  }

  /**
   * @param {Source} source
   * @param {string} label Of the button that starts with the microphone or the page's track.
   */
  #voices(source, label) {
    if (source === "sample") {
      return [action("sample", label === "Start the call" ? "Start with the sample voice" : label), MICROPHONE];
    }
    const name = source === "microphone" ? "microphone" : "start";
    const other = this.#hasSample ? [action("sample", "Try the sample voice")] : [];
    return [action(name, label), ...other];
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
 * @param {keyof typeof ICONS} icon
 * @param {string} chip
 * @param {string} title
 * @param {string} text
 * @returns {Omit<Notice, "actions">}
 */
function warning(icon, chip, title, text) {
  return { icon, tone: "warning", chip, title, text };
}

/** @returns {Notice} */
function loading() {
  return {
    icon: "clock",
    tone: "busy",
    chip: "Getting ready",
    title: "The avatar is getting ready",
    text: "The call begins by itself. This can take a minute.",
    actions: [CANCEL],
  };
}

/**
 * @param {string} name
 * @param {boolean} wasLive
 * @returns {Omit<Notice, "actions">}
 */
function offline(name, wasLive) {
  const title = wasLive ? "The stream has ended" : "Not live yet";
  const text = `The avatar appears here by itself as soon as ${name === "" ? "the stream" : name} is live.`;
  return { icon: "clock", tone: "busy", chip: wasLive ? "Ended" : "Not live", title, text };
}

/**
 * @param {number | null} position In the queue, 1 for the first; null where the server does not tell it.
 * @returns {string}
 */
function inQueue(position) {
  if (position === null) {
    return "Your call begins as soon as one is free.";
  }
  const place = position === 1 ? "You are next" : `You are number ${position} in the queue`;
  return `${place}. Your call begins by itself.`;
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
