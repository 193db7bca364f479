/**
 * The operator's page: asks the server every two seconds how it is, shows it, and ends streams.
 *
 * A token comes from the address (`/admin#token=...`, taken out of it at once) or from the form; it is kept until the
 * tab is closed, and is sent in a header only.
 */

import { bindThemeButton } from "./theme.js";

/**
 * @typedef {object} StreamRow
 * @property {string} stream Its id.
 * @property {string | null} name
 * @property {boolean | null} published Whether its voice is there.
 * @property {"microphone" | "pushed" | "livekit"} source Where its voice comes from.
 * @property {string} avatar
 * @property {string} state
 * @property {number} age_s
 * @property {number} delay_ms
 * @property {number} fps
 * @property {number} rendered
 * @property {number} held
 * @property {number} dropped
 * @property {number | null} av_offset_ms
 * @property {number | null} worst_av_offset_ms
 * @property {Record<string, number>} sent_bitrates
 * @property {{ packets: number, lost: number, jitter_s: number }[]} reception
 * @property {{ rendered: number, failed: number, late: number, overflowed: number, waiting: number }} clips
 * @property {{ codec: string | null, live: boolean, round_trip_ms: number | null }[]} viewers
 */

/**
 * @typedef {object} Use
 * @property {number | null} cpu_s
 * @property {number | null} memory_bytes
 * @property {{ memory_bytes: number, memory_total_bytes: number, utilisation: number } | null} gpu
 */

/**
 * @typedef {object} WorkerRow
 * @property {string} name
 * @property {boolean} up
 * @property {number} clips
 * @property {number} lost
 * @property {number} busy_s
 * @property {number} restarts
 * @property {number} waiting
 * @property {number | null} p50_s
 * @property {number | null} p95_s
 * @property {Use} use
 */

/**
 * @typedef {object} RecordingRow The running recording of a stream, or its last one.
 * @property {string} id
 * @property {string} stream_id
 * @property {string | null} stream The stream's name.
 * @property {"recording" | "finishing" | "complete" | "unfinished" | "empty"} state
 * @property {string | null} file The name of its file.
 * @property {string} started UTC, as in ISO 8601.
 * @property {number} seconds
 * @property {number} bytes
 * @property {string | null} reason Why it has ended.
 */

/**
 * @typedef {object} OutputRow
 * @property {string} id
 * @property {string} stream_id
 * @property {string} type
 * @property {string} endpoint Scheme, host and port.
 * @property {"connecting" | "live" | "waiting" | "failed"} state
 * @property {string | null} codec
 * @property {boolean} sound
 * @property {number} connections
 * @property {number} failures In a row.
 * @property {number | null} retry_in_s
 * @property {string | null} error Why the latest connection ended.
 */

/**
 * @typedef {object} State
 * @property {string} version
 * @property {string} engine
 * @property {string} trouble Why no stream could be opened now, or what is wrong with a worker; "" if all is well.
 * @property {number} clock_s The server's clock.
 * @property {number} capacity
 * @property {number} opened
 * @property {Record<string, number>} refusals
 * @property {Record<string, number>} frames
 * @property {{ writable: boolean, lost: number }} log
 * @property {Use} server
 * @property {WorkerRow[]} workers
 * @property {StreamRow[]} streams
 * @property {RecordingRow[]} recordings
 * @property {OutputRow[]} outputs
 */

/** @typedef {{ text: string, detail?: string, mood?: "watch" | "bad" }} Cell */

/** The server's address: the folder above this module's, also where a proxy serves it below a path. */
const HOME = new URL("..", import.meta.url);
const INTERVAL_MS = 2_000;
const TIMEOUT_MS = 5_000;
const TOKEN_KEY = "echo_rtc.admin.token";
const NOTHING = "–";
const ASKING =
  "Give the administrators' token: --admin-token, the one that the server printed at its start, or one of the scope " +
  "admin that echo-rtc token prints.";
/** Sound and picture may be this far apart before it is visible. */
const SYNC_LIMIT_MS = 30;

/** The server said no, in words. */
class Refusal extends Error {
  /** @param {number} status @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The server's part of the page. */
class OperatorServer {
  #token = readToken();

  /** Whether there is a token to send. */
  get hasToken() {
    return this.#token !== "";
  }

  set token(/** @type {string} */ token) {
    this.#token = token;
    sessionStorage.setItem(TOKEN_KEY, token);
  }

  /** @returns {Promise<State>} */
  async state() {
    return (await this.#ask("admin/state", {})).json();
  }

  /** @param {string} id */
  async end(id) {
    await this.#ask(`admin/streams/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  /** @param {string} path @param {RequestInit} options */
  async #ask(path, options) {
    /** @type {Record<string, string>} */
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const response = await fetch(new URL(path, HOME), { ...options, headers, signal, cache: "no-store" });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      throw new Refusal(response.status, String(problem.detail ?? response.statusText));
    }
    return response;
  }
}

/** Shows states; knows the one before, for all that is counted. */
class Board {
  /** @type {State | null} */ #before = null;
  #rows = new Rows(element("stream-rows"));
  #recordings = new Rows(element("recording-rows"));
  #outputs = new Rows(element("output-rows"));
  #workers = new Rows(element("worker-rows"));
  /** @type {(stream: StreamRow) => void} */ #onEnd;

  /** @param {(stream: StreamRow) => void} onEnd Called when the operator wants a stream ended. */
  constructor(onEnd) {
    this.#onEnd = onEnd;
  }

  /** @param {State} state */
  show(state) {
    const before = this.#before;
    const elapsedS = before && state.clock_s > before.clock_s ? state.clock_s - before.clock_s : null;
    element("about").textContent = `Version ${state.version} · engine ${state.engine}`;
    const troubles = [state.trouble, state.log.writable ? "" : "The log file cannot be written."].filter(Boolean);
    element("trouble").textContent = troubles.join(" ");
    element("trouble").hidden = troubles.length === 0;
    this.#showFigures(state, before, elapsedS);
    this.#showStreams(state.streams, before?.streams ?? []);
    this.#showRecordings(state.recordings);
    this.#showOutputs(state.outputs, new Map(state.streams.map(({ stream, name }) => [stream, name])));
    this.#showWorkers(state.workers, before?.workers ?? [], elapsedS);
    element("freshness").textContent = `As of ${new Date().toLocaleTimeString()}.`;
    this.#before = state;
  }

  /** @param {string} why */
  showStale(why) {
    element("trouble").textContent = why;
    element("trouble").hidden = false;
  }

  /** @param {State} state @param {State | null} before @param {number | null} elapsedS */
  #showFigures(state, before, elapsedS) {
    const { streams } = state;
    const offsets = streams.map(({ av_offset_ms }) => av_offset_ms).filter((offset) => offset !== null);
    const worst = offsets.sort((a, b) => Math.abs(b) - Math.abs(a)).at(0) ?? null;
    const shown = state.frames.rendered + state.frames.idle + state.frames.held;
    const share = shown ? state.frames.held / shown : 0;
    const heldNow = before ? state.frames.held - before.frames.held : 0;
    const refused = Object.values(state.refusals).reduce((sum, count) => sum + count, 0);
    const reasons = Object.entries(state.refusals).sort(([, a], [, b]) => b - a);
    figure("streams", { text: `${streams.length} of ${state.capacity}`, detail: `${state.opened} so far` });
    figure("viewers", { text: String(streams.reduce((sum, { viewers }) => sum + liveOnes(viewers), 0)) });
    figure("sync", syncCell(worst, null));
    figure("delay", { text: streams.length ? millis(Math.max(...streams.map(({ delay_ms }) => delay_ms))) : NOTHING });
    figure("held", {
      text: percent(share),
      detail: heldNow ? `${heldNow} just now` : "none just now",
      mood: heldNow ? "watch" : undefined,
    });
    figure("refused", { text: String(refused), detail: reasons.slice(0, 2).map(([why, n]) => `${why} ${n}`).join(", ") });
    const cores = coresOf(state.server, before?.server, elapsedS);
    figure("server", { text: cores ?? NOTHING, detail: bytes(state.server.memory_bytes) });
  }

  /** @param {StreamRow[]} streams @param {StreamRow[]} before */
  #showStreams(streams, before) {
    const earlier = new Map(before.map((stream) => [stream.stream, stream]));
    element("no-streams").hidden = streams.length > 0;
    this.#rows.keep(streams.map(({ stream }) => stream));
    for (const stream of streams) {
      const was = earlier.get(stream.stream);
      const heldNow = was ? stream.held - was.held : 0;
      const lostClips = stream.clips.failed + stream.clips.late + stream.clips.overflowed;
      const row = this.#rows.row(stream.stream);
      row.heading(streamName(stream.stream, stream.name), `avatar ${stream.avatar}`);
      row.state("State", stream.state, stream.source === "microphone" && stream.published === false ? "no publisher" : "");
      row.cell("Open for", { text: duration(stream.age_s) });
      row.cell("Delay", { text: millis(stream.delay_ms) });
      row.cell("Sync", syncCell(stream.av_offset_ms, stream.worst_av_offset_ms));
      row.cell("Frames", {
        text: `${stream.fps} a second`,
        detail: `${stream.held} held, ${stream.dropped} dropped, ${lostClips} clips lost`,
        mood: heldNow ? "watch" : undefined,
      });
      row.cell("Microphone", speechBy(stream) ?? microphoneCell(stream.reception));
      row.cell("Sent", sentCell(stream.sent_bitrates));
      row.cell("Viewers", { text: String(liveOnes(stream.viewers)), detail: roundTrip(stream.viewers) });
      row.button("End", `End the stream ${stream.name ?? stream.stream.slice(0, 8)}`, () => this.#onEnd(stream));
    }
  }

  /** @param {RecordingRow[]} recordings */
  #showRecordings(recordings) {
    element("no-recordings").hidden = recordings.length > 0;
    this.#recordings.keep(recordings.map(({ id }) => id));
    for (const recording of recordings) {
      const row = this.#recordings.row(recording.id);
      row.heading(streamName(recording.stream_id, recording.stream), "");
      row.state("State", recording.state, recording.reason ?? "");
      row.cell("File", { text: recording.file ?? NOTHING });
      row.cell("Since", { text: new Date(recording.started).toLocaleString() });
      row.cell("Length", { text: duration(recording.seconds) });
      row.cell("Size", { text: bytes(recording.bytes) });
    }
  }

  /** @param {OutputRow[]} outputs @param {Map<string, string | null>} names Of the streams, by their ids. */
  #showOutputs(outputs, names) {
    element("no-outputs").hidden = outputs.length > 0;
    this.#outputs.keep(outputs.map(({ id }) => id));
    for (const output of outputs) {
      const row = this.#outputs.row(output.id);
      const sent = [output.codec, output.sound ? "Opus" : null].filter((codec) => codec !== null);
      const retry = output.retry_in_s === null ? "" : `next attempt in ${Math.ceil(output.retry_in_s)} s`;
      row.heading(streamName(output.stream_id, names.get(output.stream_id) ?? null), "");
      row.state("State", output.state, output.state === "live" ? "" : (output.error ?? ""));
      row.cell("Pushed to", { text: output.endpoint, detail: output.type.toUpperCase() });
      row.cell("Sent", { text: sent.join(", ") || NOTHING });
      row.cell("Connections", { text: String(output.connections) });
      row.cell("Failures", {
        text: String(output.failures),
        detail: retry,
        mood: output.failures ? "watch" : undefined,
      });
    }
  }

  /** @param {WorkerRow[]} workers @param {WorkerRow[]} before @param {number | null} elapsedS */
  #showWorkers(workers, before, elapsedS) {
    const earlier = new Map(before.map((worker) => [worker.name, worker]));
    element("no-workers").hidden = workers.length > 0;
    this.#workers.keep(workers.map(({ name }) => name));
    for (const worker of workers) {
      const was = earlier.get(worker.name);
      const row = this.#workers.row(worker.name);
      const busy = was && elapsedS ? percent(Math.min(1, (worker.busy_s - was.busy_s) / elapsedS)) : NOTHING;
      const { gpu } = worker.use;
      row.heading(worker.name, "");
      row.state("State", worker.up ? "up" : "down", "");
      row.cell("Clips", { text: String(worker.clips), detail: worker.lost ? `${worker.lost} lost` : "" });
      row.cell("A clip takes", {
        text: worker.p50_s === null ? NOTHING : millis(worker.p50_s * 1000),
        detail: worker.p95_s === null ? "" : `95 % within ${millis(worker.p95_s * 1000)}`,
      });
      row.cell("Busy", { text: busy });
      row.cell("Waiting", { text: String(worker.waiting) });
      row.cell("Restarts", { text: String(worker.restarts), mood: worker.restarts ? "watch" : undefined });
      row.cell("Process", {
        text: coresOf(worker.use, was?.use, elapsedS) ?? (worker.use.cpu_s === null ? "the server's" : NOTHING),
        detail: bytes(worker.use.memory_bytes),
      });
      row.cell("GPU", {
        text: gpu ? percent(gpu.utilisation) : NOTHING,
        detail: gpu ? `${bytes(gpu.memory_bytes)} of ${bytes(gpu.memory_total_bytes)}` : "",
      });
    }
  }
}

/** The rows of a table by key. They stay as long as their keys do, so that a focused button keeps the focus. */
class Rows {
  /** @type {Map<string, Row>} */ #rows = new Map();
  /** @type {HTMLElement} */ #body;

  /** @param {HTMLElement} body */
  constructor(body) {
    this.#body = body;
  }

  /** @param {string[]} keys Those that stay. */
  keep(keys) {
    for (const [key, row] of this.#rows) {
      if (!keys.includes(key)) {
        row.element.remove();
        this.#rows.delete(key);
      }
    }
  }

  /** @param {string} key */
  row(key) {
    const known = this.#rows.get(key) ?? new Row();
    if (!this.#rows.has(key)) {
      this.#rows.set(key, known);
      this.#body.append(known.element);
    }
    known.begin();
    return known;
  }
}

/** One row, whose cells are set in order. */
class Row {
  element = document.createElement("tr");
  #next = 0;

  begin() {
    this.#next = 0;
  }

  /** @param {string} text @param {string} detail */
  heading(text, detail) {
    const cell = this.#cell("");
    const strong = cell.querySelector("strong") ?? cell.appendChild(document.createElement("strong"));
    strong.textContent = text;
    setDetail(cell, detail);
  }

  /** @param {string} label @param {string} state @param {string} detail */
  state(label, state, detail) {
    const cell = this.#cell(label);
    const span = cell.querySelector("span") ?? cell.appendChild(document.createElement("span"));
    span.className = "state";
    span.dataset.state = state;
    span.textContent = state;
    setDetail(cell, detail);
  }

  /** @param {string} label @param {Cell} content */
  cell(label, content) {
    fill(this.#cell(label), content);
  }

  /** @param {string} text @param {string} label What it does, for screen readers. @param {() => void} act */
  button(text, label, act) {
    const cell = this.#cell("");
    const button = cell.querySelector("button") ?? cell.appendChild(document.createElement("button"));
    button.type = "button";
    button.className = "plain danger";
    button.textContent = text;
    button.setAttribute("aria-label", label);
    button.onclick = act;
  }

  /** @param {string} label */
  #cell(label) {
    const cell = this.element.cells.item(this.#next) ?? this.element.insertCell();
    cell.dataset.label = label;
    this.#next += 1;
    return cell;
  }
}

/** The page: asks, shows, and asks for a token where one is needed. */
class OperatorPage {
  #server = new OperatorServer();
  #board = new Board((stream) => this.#confirm(stream));
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  run() {
    bindThemeButton(element("theme", HTMLButtonElement));
    element("gate").addEventListener("submit", (event) => {
      event.preventDefault();
      const input = element("token", HTMLInputElement);
      this.#server.token = input.value.trim();
      input.value = "";
      this.#look();
    });
    document.addEventListener("visibilitychange", () => document.hidden || this.#look());
    this.#look();
  }

  async #look() {
    clearTimeout(this.#timer);
    try {
      this.#board.show(await this.#server.state());
      this.#open(true, "");
    } catch (error) {
      if (error instanceof Refusal && (error.status === 401 || error.status === 403)) {
        this.#open(false, error.status === 401 && !this.#server.hasToken ? ASKING : error.message);
        return;
      }
      this.#board.showStale(error instanceof Refusal ? error.message : "The server does not answer.");
      this.#open(true, "");
    }
    if (!document.hidden) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#look(), INTERVAL_MS);
    }
  }

  /** @param {boolean} isOpen Whether the figures are shown, else the form. @param {string} why */
  #open(isOpen, why) {
    const gate = element("gate");
    const asksAnew = gate.hidden && !isOpen;
    element("board").hidden = !isOpen;
    gate.hidden = isOpen;
    element("gate-text").textContent = why;
    if (asksAnew) {
      element("token").focus();
    }
  }

  /** @param {StreamRow} stream */
  #confirm(stream) {
    const dialog = element("confirm", HTMLDialogElement);
    const viewers = liveOnes(stream.viewers);
    const audience = viewers === 1 ? "one viewer" : `${viewers} viewers`;
    const name = streamName(stream.stream, stream.name);
    element("confirm-text").textContent = `${name} has been open for ${duration(stream.age_s)} and has ${audience}.`;
    dialog.returnValue = "keep";
    dialog.onclose = () => dialog.returnValue === "end" && this.#end(stream.stream);
    dialog.showModal();
  }

  /** @param {string} id */
  async #end(id) {
    try {
      await this.#server.end(id);
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 404)) {
        this.#board.showStale(error instanceof Refusal ? error.message : "The server does not answer.");
        return;
      }
    }
    await this.#look();
  }
}

/** The token in the address, which is taken out of it, else the one that this tab had before; "" where there is none. */
function readToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem(TOKEN_KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given ?? sessionStorage.getItem(TOKEN_KEY) ?? "";
}

/** @param {HTMLElement} target @param {Cell} content */
function fill(target, { text, detail = "", mood }) {
  const value = target.querySelector("span") ?? target.appendChild(document.createElement("span"));
  value.textContent = text;
  if (mood) {
    value.dataset.mood = mood;
  } else {
    delete value.dataset.mood;
  }
  setDetail(target, detail);
}

/** @param {HTMLElement} target @param {string} detail */
function setDetail(target, detail) {
  const small = target.querySelector("small") ?? target.appendChild(document.createElement("small"));
  small.textContent = detail;
}

/** @param {string} name @param {Cell} content */
function figure(name, content) {
  const target = document.querySelector(`[data-figure="${name}"]`);
  if (target instanceof HTMLElement) {
    fill(target, content);
  }
}

/** @param {number | null} now @param {number | null} worst @returns {Cell} */
function syncCell(now, worst) {
  return {
    text: now === null ? NOTHING : signed(now),
    detail: worst === null ? "" : `at worst ${signed(worst)}`,
    mood: now !== null && Math.abs(now) > SYNC_LIMIT_MS ? "bad" : undefined,
  };
}

/** @param {StreamRow} stream @returns {Cell | undefined} Who pushes its speech, if it has no microphone. */
function speechBy(stream) {
  const words = { pushed: "pushed speech", livekit: "LiveKit room" };
  return stream.source === "microphone" ? undefined : { text: words[stream.source] };
}

/** @param {StreamRow["reception"]} reception @returns {Cell} */
function microphoneCell(reception) {
  const link = reception.at(-1);
  if (!link) {
    return { text: NOTHING };
  }
  const all = link.packets + link.lost;
  const share = all ? link.lost / all : 0;
  return {
    text: `${percent(share)} lost`,
    detail: `jitter ${(link.jitter_s * 1000).toFixed(1)} ms`,
    mood: share > 0.02 ? "watch" : undefined,
  };
}

/** @param {Record<string, number>} bitrates @returns {Cell} */
function sentCell(bitrates) {
  const pictures = Object.entries(bitrates).filter(([codec]) => codec !== "Opus");
  const sound = bitrates.Opus;
  return {
    text: pictures.map(([codec, rate]) => `${codec} ${kilobits(rate)}`).join(", ") || NOTHING,
    detail: sound === undefined ? "" : `Opus ${kilobits(sound)}`,
  };
}

/** @param {string} id @param {string | null} name */
function streamName(id, name) {
  return name ?? `${id.slice(0, 8)}…`;
}

/** @param {StreamRow["viewers"]} viewers */
function liveOnes(viewers) {
  return viewers.filter(({ live }) => live).length;
}

/** @param {StreamRow["viewers"]} viewers */
function roundTrip(viewers) {
  const known = viewers.map(({ round_trip_ms }) => round_trip_ms).filter((ms) => ms !== null);
  return known.length ? `round trip ${millis(Math.max(...known))}` : "";
}

/** @param {Use} use @param {Use | undefined} before @param {number | null} elapsedS */
function coresOf(use, before, elapsedS) {
  if (use.cpu_s === null || before?.cpu_s === null || before === undefined || !elapsedS) {
    return null;
  }
  const spentS = use.cpu_s - before.cpu_s;
  return spentS < 0 ? null : `${(spentS / elapsedS).toFixed(2)} cores`;
}

/** @param {number} ms */
function signed(ms) {
  const rounded = Math.abs(ms) < 0.05 ? 0 : ms;
  return `${rounded > 0 ? "+" : rounded < 0 ? "−" : ""}${Math.abs(rounded).toFixed(1)} ms`;
}

/** @param {number} ms */
function millis(ms) {
  return `${Math.round(ms)} ms`;
}

/** @param {number} share 0..1 */
function percent(share) {
  return `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`;
}

/** @param {number} rate bit/s */
function kilobits(rate) {
  return `${Math.round(rate / 1000)} kbit/s`;
}

/** @param {number | null} count */
function bytes(count) {
  if (count === null) {
    return "";
  }
  if (count >= 1e9) {
    return `${(count / 1e9).toFixed(1)} GB`;
  }
  return count >= 1e6 ? `${Math.round(count / 1e6)} MB` : `${Math.round(count / 1e3)} kB`;
}

/** @param {number} seconds */
function duration(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [, minutes, rest] = parts.map((part) => String(part).padStart(2, "0"));
  return parts[0] ? `${parts[0]}:${minutes}:${rest}` : `${Number(minutes)}:${rest}`;
}

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} [kind]
 * @returns {T}
 */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof (kind ?? HTMLElement))) {
    throw new Error(`the page has no element ${id}`);
  }
  return /** @type {T} */ (found);
}

new OperatorPage().run();
