/** How loud a track is, as a level for the eye. */

/** What shows as an empty meter, in dB below full scale. */
const FLOOR_DB = -60;
/** The share of the level that is left after one frame without sound: the bar falls softly, it does not flicker. */
const FALL = 0.86;

export class LevelMeter {
  /** @type {AudioContext} */ #context;
  /** @type {AnalyserNode} */ #analyser;
  /** @type {Float32Array<ArrayBuffer>} */ #samples;
  /** @type {MediaStreamAudioSourceNode | null} */ #source = null;
  #level = 0;

  /** @param {AudioContext} context */
  constructor(context) {
    this.#context = context;
    this.#analyser = context.createAnalyser();
    this.#analyser.fftSize = 1024;
    this.#samples = new Float32Array(this.#analyser.fftSize);
  }

  /**
   * Measures this track from now on; null measures nothing.
   * @param {MediaStreamTrack | null} track
   */
  attach(track) {
    this.#source?.disconnect();
    this.#source = null;
    this.#level = 0;
    if (track !== null) {
      this.#source = this.#context.createMediaStreamSource(new MediaStream([track]));
      this.#source.connect(this.#analyser);
    }
  }

  /** @returns {number} 0..1, linear in dB. To be called once a frame of the screen. */
  read() {
    if (this.#source === null) {
      return 0;
    }
    this.#analyser.getFloatTimeDomainData(this.#samples);
    this.#level = Math.max(levelOf(this.#samples), this.#level * FALL);
    return this.#level;
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
