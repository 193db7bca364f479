/** How loud a track is, and whether it has speech: measured in the browser, so that the page can show it at once. */

/** What shows as an empty meter, in dB below full scale. */
const FLOOR_DB = -60;
/** The share of the level that is left after one reading without sound: the bar falls softly, it does not flicker. */
const FALL = 0.7;
/** Louder than this (-38 dB) for so long is speech; quieter for so long is none any more. */
const SPEECH_LEVEL = 0.37;
const SPEECH_MS = 120;
const PAUSE_MS = 900;

export class LevelMeter {
  /** @type {AudioContext} */ #context;
  /** @type {AnalyserNode} */ #analyser;
  /** @type {Float32Array<ArrayBuffer>} */ #samples;
  /** @type {MediaStreamAudioSourceNode | null} */ #source = null;
  /** @type {MediaStreamTrack | null} */ #track = null;
  #level = 0;

  /** To be made within a gesture the first time, which browsers want before they run any sound. */
  constructor() {
    this.#context = new AudioContext();
    this.#analyser = this.#context.createAnalyser();
    this.#analyser.fftSize = 2048;
    this.#samples = new Float32Array(this.#analyser.fftSize);
  }

  /**
   * Measures a copy of this track from now on, also while the track itself is muted; null measures nothing.
   * @param {MediaStreamTrack | null} track
   */
  attach(track) {
    this.#source?.disconnect();
    this.#track?.stop();
    this.#source = this.#track = null;
    this.#level = 0;
    if (track !== null) {
      this.#track = track.clone();
      this.#track.enabled = true;
      this.#source = this.#context.createMediaStreamSource(new MediaStream([this.#track]));
      this.#source.connect(this.#analyser);
      this.resume();
    }
  }

  /** Phones stop the sound of pages that are put away, and browsers that of pages without a gesture. */
  resume() {
    this.#context.resume().catch(() => {});
  }

  /** @returns {number} 0..1, linear in dB. To be called about twenty times a second. */
  read() {
    if (this.#source === null) {
      return 0;
    }
    this.#analyser.getFloatTimeDomainData(this.#samples);
    this.#level = Math.max(levelOf(this.#samples), this.#level * FALL);
    return this.#level;
  }

  /** Gives everything back. */
  close() {
    this.attach(null);
    this.#context.close();
  }
}

/** Tells speech from a click and a pause between words from the end of a sentence. */
export class SpeechDetector {
  #speaking = false;
  /** @type {number | null} When the level last crossed to the other side. */ #changedMs = null;

  /**
   * @param {number} level As a LevelMeter reads it.
   * @param {number} nowMs
   * @returns {boolean} Whether there is speech.
   */
  update(level, nowMs) {
    if (level >= SPEECH_LEVEL === this.#speaking) {
      this.#changedMs = null;
    } else {
      this.#changedMs ??= nowMs;
      if (nowMs - this.#changedMs >= (this.#speaking ? PAUSE_MS : SPEECH_MS)) {
        this.#speaking = !this.#speaking;
        this.#changedMs = null;
      }
    }
    return this.#speaking;
  }
}

/**
 * @param {Float32Array} samples -1..1
 * @returns {number} 0 (FLOOR_DB or quieter) .. 1 (full scale)
 */
export function levelOf(samples) {
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  const db = 10 * Math.log10(Math.max(power, 1e-12));
  return Math.min(1, Math.max(0, 1 - db / FLOOR_DB));
}
