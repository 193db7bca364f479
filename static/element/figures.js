/**
 * What a browser counts of its connection (W3C webrtc-stats) as figures for people. Knows no connection.
 */

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
