/** A recorded voice in place of a microphone: plays a file round and round, with a pause, into a track. */

/** The pause after each round, in which the avatar's mouth comes to rest. */
const PAUSE_S = 2.5;

/** A recorded voice that is playing. Needs no microphone and no permission. */
export class SampleVoice {
  /** @type {AudioBufferSourceNode} */ #source;
  /** @type {MediaStreamTrack} */ #track;

  /**
   * @param {AudioContext} context
   * @param {AudioBuffer} round What is repeated.
   */
  constructor(context, round) {
    const out = new MediaStreamAudioDestinationNode(context, { channelCount: 1 });
    this.#source = new AudioBufferSourceNode(context, { buffer: round, loop: true });
    this.#source.connect(out);
    this.#source.start();
    this.#track = /** @type {MediaStreamTrack} */ (out.stream.getAudioTracks()[0]);
  }

  /**
   * Starts the voice from its beginning; rejects if the file cannot be had or decoded.
   * @param {AudioContext} context It must be running for the voice to be heard.
   * @param {string} url Of an audio file that browsers decode.
   * @returns {Promise<SampleVoice>}
   */
  static async open(context, url) {
    const response = await fetch(url);
    if (!response.ok) {
      throw new Error(`${url} answers ${response.status}`);
    }
    const recording = await context.decodeAudioData(await response.arrayBuffer());
    const pause = Math.round(PAUSE_S * recording.sampleRate);
    // Recording and pause in one buffer: looping then needs no timer, which hidden pages get late.
    const round = context.createBuffer(1, recording.length + pause, recording.sampleRate);
    round.copyToChannel(recording.getChannelData(0), 0);
    return new SampleVoice(context, round);
  }

  get track() {
    return this.#track;
  }

  close() {
    this.#source.stop();
    this.#source.disconnect();
    this.#track.stop();
  }
}
