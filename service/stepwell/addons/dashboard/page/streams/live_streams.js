// The streams of the chosen model: which are live, and what the page has received of each.

import { WINDOW } from "../charts/plot.js";
import { Trend } from "./trend.js";

const IDLE = 10_000; // streams that are not live and are kept
const IDLE_ROWS = 300; // of them, those whose rows are kept
const LIVE_S = 5; // a stream is live for this long after its last timestep
const byName = new Intl.Collator("en", { numeric: true }).compare;
const now = () => performance.now() / 1000;

/** One stream: its last step and outputs, its trend, and the rows that the charts show. */
class Stream {
  name;
  key; // the name in lower case, for searches
  step = 0;
  outputs = null;
  seenAt = -Infinity;
  trend = new Trend();
  /**
   * {at, step, time, inputs, outputs, candidate, isStored, mark}, oldest first. `at` counts on when a reset restarts the
   * steps; `time` is when the page received it, in ms; `mark` is what happened here; a row with the step null
   * interrupts the lines.
   */
  rows = [];
  weights = []; // of readouts: {at, step, time, found}

  constructor(name) {
    this.name = name;
    this.key = name.toLowerCase();
  }

  get isLive() {
    return now() - this.seenAt < LIVE_S;
  }

  /** Record a commit for the list; returns its number of timesteps, including those of missed commits. */
  recordCommit(step, outputs) {
    const count = this.seenAt > -Infinity && step > this.step ? step - this.step : outputs.length;
    this.step = step;
    this.outputs = outputs.at(-1) ?? this.outputs;
    this.seenAt = now();
    for (const row of outputs) this.trend.add(row);
    return count;
  }

  /** Set the stored step and the last outputs (or null), for a stream without recent events. */
  setStored(step, outputs, time = Date.now()) {
    Object.assign(this, { step, outputs });
    const last = this.rows.at(-1);
    if (last?.step === step) return;
    if (last && last.step !== null) this.#push(null, {}, {}, { mark: whatHappened(last.step, step + 1) });
    if (outputs) this.#push(step, {}, outputs, { isStored: true, time });
  }

  /** Keep a commit's timesteps for the charts; `candidates` are the outputs of the candidate of a release, if any. */
  addRows(step, inputs, outputs, candidates = []) {
    const first = step - outputs.length + 1;
    if (this.rows.at(-1)?.isStored && first === this.rows.at(-1).step) this.rows.pop(); // the stored row, now received as an event
    const last = this.rows.at(-1);
    if (last && first !== last.step + 1) this.#push(null, {}, {}, { mark: whatHappened(last.step, first) });
    outputs.forEach((row, t) => this.#push(first + t, inputs[t] ?? {}, row, { candidate: candidates[t] ?? {} }));
    if (this.rows.length > WINDOW) this.rows.splice(0, this.rows.length - WINDOW);
  }

  /** Begin with the rows of the stream that this one was forked from, up to the step at which it was. */
  inheritFrom(parent, step) {
    const end = parent.rows.findLastIndex((row) => row.step === step);
    if (end < 0 || this.rows.length) return;
    this.rows = parent.rows.slice(0, end + 1).map((row) => ({ ...row }));
    this.rows.at(-1).mark = `fork of ${parent.name}`;
  }

  /** Keep the weights of the stream's readouts as they were read with its state; the newest are last. */
  keepWeights(step, found) {
    if (!found.length || this.weights.at(-1)?.step === step) return;
    if (this.weights.at(-1)?.step > step) this.weights = []; // it was reset
    this.weights.push({ at: (this.weights.at(-1)?.at ?? 0) + 1, step, time: Date.now(), found });
    if (this.weights.length > WINDOW) this.weights.shift();
  }

  #push(step, inputs, outputs, { candidate = {}, isStored = false, mark = "", time = Date.now() } = {}) {
    this.rows.push({ at: (this.rows.at(-1)?.at ?? 0) + 1, step, time, inputs, outputs, candidate, isStored, mark });
  }
}

/** Why the step after `last` is `first`, in a word or two. */
function whatHappened(last, first) {
  if (last === null) return "";
  if (first > last) return `${first - last - 1} not received`;
  return first === 1 ? "reset" : `reset to step ${first - 1}`;
}

/** All known streams of one model. */
export class Streams {
  byName = new Map();
  isListed = false; // whether the service has listed its streams
  isMore = false; // whether the service has streams that are not here
  #sorted = null;

  get(name) {
    if (!this.byName.has(name)) {
      this.byName.set(name, new Stream(name));
      this.#sorted = null;
    }
    return this.byName.get(name);
  }

  /** Remove a stream that was deleted. */
  remove(name) {
    this.byName.delete(name);
    this.#sorted = null;
  }

  /** All streams by name; sorted again only if there are others than before. */
  get sorted() {
    this.#sorted ??= [...this.byName.values()].sort((a, b) => byName(a.name, b.name));
    return this.#sorted;
  }

  /** The streams whose name contains a text, live ones first, then by name; and how many of all streams are live. */
  matching(text) {
    const [live, idle, wanted] = [[], [], text.toLowerCase()];
    let nLive = 0;
    for (const stream of this.sorted) {
      const isLive = stream.isLive;
      nLive += isLive;
      if (stream.key.includes(wanted)) (isLive ? live : idle).push(stream);
    }
    return { matches: [...live, ...idle], live: nLive };
  }

  /** Forget what is not shown of the streams that have been idle longest, so that the page can stay open for weeks. */
  trim(shown) {
    const idle = this.sorted.filter(({ isLive, name }) => !isLive && !shown.includes(name));
    idle.sort((a, b) => Number(b.seenAt > a.seenAt) - Number(b.seenAt < a.seenAt));
    for (const stream of idle.slice(IDLE_ROWS)) stream.rows = [];
    for (const { name } of idle.slice(IDLE)) this.remove(name);
  }

  /** Add streams of the service's list. */
  add(streams) {
    for (const { stream, step } of streams) {
      const known = this.get(stream);
      if (!known.isLive) known.step = step;
    }
  }

  /** Apply the start of the service's list; if it is all of it, streams that are not in it are removed, unless live. */
  list({ streams, cursor }) {
    this.isListed = true;
    this.isMore = cursor != null;
    this.add(streams);
    if (this.isMore) return;
    const names = new Set(streams.map(({ stream }) => stream));
    for (const [name, stream] of this.byName) if (!names.has(name) && !stream.isLive) this.remove(name);
  }
}
