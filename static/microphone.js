/**
 * The microphone as a voice: asks for it, lists the choices, and says when it is gone.
 *
 * Every way in which a browser can withhold a microphone becomes a `MicrophoneError`; the words for it are elsewhere.
 */

/**
 * @typedef {"insecure" | "refused" | "missing" | "busy" | "failed"} MicrophoneFault
 * insecure: the page's address is one to which browsers give no microphone. refused: by the user or a policy.
 * missing: none is connected. busy: the system or another program keeps it. failed: anything else.
 */

/** @typedef {{ id: string, label: string }} Device */

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

/** Ids that name no device of their own. */
const STAND_INS = ["", "default", "communications"];

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

/** An open microphone. Event: "lost" when it has ended without `close`, for instance because it was unplugged. */
export class Microphone extends EventTarget {
  /** @type {MediaStreamTrack} */ #track;

  /** @param {MediaStreamTrack} track */
  constructor(track) {
    super();
    this.#track = track;
    track.contentHint = "speech";
    // "ended" is for ends that come from outside; `stop` in `close` does not fire it.
    track.addEventListener("ended", () => this.dispatchEvent(new Event("lost")));
  }

  /**
   * Opens a microphone; rejects with a MicrophoneError.
   * @param {string} device Its id; "" for the system's choice, which also stands in for one that is not there any more.
   * @returns {Promise<Microphone>}
   */
  static async open(device) {
    if (navigator.mediaDevices?.getUserMedia === undefined) {
      throw new MicrophoneError("insecure");
    }
    try {
      return new Microphone(await trackOf(device));
    } catch (error) {
      const name = error instanceof Error ? error.name : "";
      const fault = FAULTS[name] ?? "failed";
      if (device !== "" && fault === "missing") {
        return Microphone.open("");
      }
      throw new MicrophoneError(fault, error);
    }
  }

  get track() {
    return this.#track;
  }

  /** The id of the device. */
  get device() {
    return this.#track.getSettings().deviceId ?? "";
  }

  /** Gives the microphone back to the system. */
  close() {
    this.#track.stop();
  }
}

/**
 * The microphones there are, without the stand-ins for them under which some browsers list the system's choice again.
 * Until one has been opened, browsers tell neither ids nor names.
 * @returns {Promise<Device[]>}
 */
export async function microphones() {
  const all = (await navigator.mediaDevices?.enumerateDevices?.().catch(() => [])) ?? [];
  return all
    .filter(({ kind, deviceId }) => kind === "audioinput" && !STAND_INS.includes(deviceId))
    .map(({ deviceId, label }, index) => ({ id: deviceId, label: label || `Microphone ${index + 1}` }));
}

/**
 * Calls back whenever a device comes or goes.
 * @param {() => void} callback
 */
export function onDevicesChanged(callback) {
  navigator.mediaDevices?.addEventListener?.("devicechange", callback);
}

/** @param {string} device */
async function trackOf(device) {
  const audio = device === "" ? WANTED : { ...WANTED, deviceId: { exact: device } };
  const [track] = (await navigator.mediaDevices.getUserMedia({ audio })).getAudioTracks();
  if (track === undefined) {
    throw new DOMException("the stream has no sound", "NotFoundError");
  }
  return track;
}
