// The streams of the chosen model, and their list in the page.

import { ago, number, summary } from "./shapes.js";
import { WINDOW } from "./plot.js";

const LIVE_S = 5; // a stream is live for this long after its last timestep
const MAX_ROWS = 200; // rows in the list; the filter shows the others
const byName = new Intl.Collator("en", { numeric: true }).compare;
const now = () => performance.now() / 1000;

/** One stream: its last step and outputs, and the rows that the charts show. */
class Stream {
  name;
  step = 0;
  outputs = null;
  seenAt = -Infinity;
  rows = []; // {at, step, inputs, outputs, candidate, isStored}, oldest first; `at` counts on when a reset restarts the steps

  constructor(name) {
    this.name = name;
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
    return count;
  }

  /** Set the stored step and the last outputs (or null), for a stream without recent events. */
  setStored(step, outputs) {
    Object.assign(this, { step, outputs });
    const last = this.rows.at(-1);
    if (last?.step === step) return;
    if (last && last.step !== null) this.#push(null, {}, {});
    if (outputs) this.#push(step, {}, outputs, true);
  }

  /** Keep a commit's timesteps for the charts; `candidates` are the outputs of the candidate of a release, if any. */
  addRows(step, inputs, outputs, candidates = []) {
    const first = step - outputs.length + 1;
    if (this.rows.at(-1)?.isStored && first === this.rows.at(-1).step) this.rows.pop(); // the stored row, now received as an event
    const last = this.rows.at(-1);
    if (last && first !== last.step + 1) this.#push(null, {}, {}); // after a reset or lost messages the lines are interrupted
    outputs.forEach((row, t) => this.#push(first + t, inputs[t] ?? {}, row, false, candidates[t] ?? {}));
    if (this.rows.length > WINDOW) this.rows.splice(0, this.rows.length - WINDOW);
  }

  #push(step, inputs, outputs, isStored = false, candidate = {}) {
    this.rows.push({ at: (this.rows.at(-1)?.at ?? 0) + 1, step, inputs, outputs, candidate, isStored });
  }
}

/** All known streams of one model. */
export class Streams {
  byName = new Map();
  truncated = false;
  isListed = false; // whether the service's list was received

  get live() {
    return [...this.byName.values()].filter((stream) => stream.isLive);
  }

  get(name) {
    if (!this.byName.has(name)) this.byName.set(name, new Stream(name));
    return this.byName.get(name);
  }

  /** Apply the service's list; streams that are not in it are removed, unless they are live. */
  list({ streams, cursor }) {
    this.truncated = cursor != null;
    this.isListed = true;
    for (const { stream, step } of streams) {
      const known = this.get(stream);
      if (!known.isLive) known.step = step;
    }
    if (this.truncated) return;
    const names = new Set(streams.map(({ stream }) => stream));
    for (const [name, stream] of this.byName) if (!names.has(name) && !stream.isLive) this.byName.delete(name);
  }
}

/** The list in the page: live streams first, then by name; arrow keys select. */
export class StreamList {
  #rows = new Map(); // name -> {item, ...its parts}
  #shown = [];

  /** @param {{list: HTMLElement, filter: HTMLInputElement, note: HTMLElement, choose: Function}} parts */
  constructor({ list, filter, note, choose }) {
    Object.assign(this, { list, filter, note, choose });
    list.addEventListener("click", ({ target }) => {
      const item = target.closest("[role=option]");
      if (item) choose(item.dataset.name);
    });
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  /** All streams in the list's order. */
  sorted(streams) {
    return [...streams.byName.values()].sort((a, b) => b.isLive - a.isLive || byName(a.name, b.name));
  }

  render(streams, outputSpecs, chosen) {
    const wanted = this.filter.value.trim().toLowerCase();
    const matches = this.sorted(streams).filter(({ name }) => name.toLowerCase().includes(wanted));
    this.#shown = matches.slice(0, MAX_ROWS).map(({ name }) => name);
    const items = matches.slice(0, MAX_ROWS).map((stream) => this.#row(stream, outputSpecs, stream.name === chosen));
    const placed = this.list.children;
    const inOrder = placed.length === items.length && items.every((item, i) => placed[i] === item);
    if (!inOrder) this.list.replaceChildren(...items);
    for (const name of this.#rows.keys()) if (!streams.byName.has(name)) this.#rows.delete(name);
    const id = this.#rows.get(chosen)?.item.id;
    if (id && this.#shown.includes(chosen)) this.list.setAttribute("aria-activedescendant", id);
    else this.list.removeAttribute("aria-activedescendant");
    this.note.textContent = this.#noteText(matches.length, streams, wanted);
  }

  #noteText(count, streams, wanted) {
    if (!count) return wanted ? "No stream id contains this text." : "No streams yet.";
    if (count > MAX_ROWS) return `${number(count - MAX_ROWS)} more; use the filter to find them.`;
    return streams.truncated ? "The service has more streams than are listed here." : "";
  }

  #row(stream, outputSpecs, isChosen) {
    if (!this.#rows.has(stream.name)) this.#rows.set(stream.name, makeRow(stream.name));
    const { item, step, prediction, seen } = this.#rows.get(stream.name);
    const set = (node, text) => node.textContent !== text && (node.textContent = text);
    item.setAttribute("aria-selected", String(isChosen));
    item.classList.toggle("live", stream.isLive);
    set(step, number(stream.step));
    set(prediction, summary(stream.outputs, outputSpecs));
    set(seen, stream.seenAt > -Infinity ? ago(now() - stream.seenAt) : "idle");
    return item;
  }

  #key(event) {
    const offsets = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in offsets) || !this.#shown.length) return;
    event.preventDefault();
    const from = this.#shown.findIndex((name) => this.#rows.get(name).item.getAttribute("aria-selected") === "true");
    const to = Math.max(0, Math.min(this.#shown.length - 1, from + offsets[event.key]));
    this.choose(this.#shown[to]);
    this.#rows.get(this.#shown[to]).item.scrollIntoView({ block: "nearest" });
  }
}

let ids = 0;

function makeRow(name) {
  const item = document.createElement("li");
  item.setAttribute("role", "option");
  item.id = `stream-${(ids += 1)}`;
  item.dataset.name = name;
  const parts = Object.fromEntries(
    ["dot", "name", "step", "prediction", "seen"].map((part) => {
      const span = document.createElement("span");
      span.className = part;
      item.append(span);
      return [part, span];
    }),
  );
  parts.dot.setAttribute("aria-hidden", "true");
  parts.name.textContent = name;
  parts.step.title = "timesteps";
  return { item, ...parts };
}
