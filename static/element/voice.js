/**
 * The voices. Each has a track, gives it back on `close`, and sends "lost" when the track ends without that.
 */

/** @import { Source } from "./words.js" */

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
export class Voice extends EventTarget {
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
export async function openMicrophone(device) {
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
export async function openSample(url) {
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
export function borrow(track) {
  if (track.readyState === "ended") {
    throw new MicrophoneError("ended");
  }
  return new Voice(track.clone(), "track");
}
