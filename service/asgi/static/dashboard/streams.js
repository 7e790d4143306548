// The streams that the page knows, and the list of them.

import { ago, number, summary } from "./shapes.js";
import { WINDOW } from "./plot.js";

const LIVE_S = 5; // a stream is live for this long after its last timestep
const MOST_ROWS = 200; // rows in the list; the filter finds the others
const byName = new Intl.Collator("en", { numeric: true }).compare;
const now = () => performance.now() / 1000;

/** One stream: its last step and outputs, and the rows that the charts show. */
class Stream {
  name;
  step = 0;
  outputs = null;
  seenAt = -Infinity;
  rows = []; // {at, step, inputs, outputs, isTold}, oldest first; `at` counts on where a reset begins the steps anew

  constructor(name) {
    this.name = name;
  }

  get isLive() {
    return now() - this.seenAt < LIVE_S;
  }

  /** Note a commit for the list; answers how many timesteps it was ahead of what was known. */
  see(step, outputs) {
    const ahead = this.seenAt > -Infinity && step > this.step ? step - this.step : outputs.length;
    this.step = step;
    this.outputs = outputs.at(-1) ?? this.outputs;
    this.seenAt = now();
    return ahead;
  }

  /** Take where the service says that the stream stands, its last outputs or null; for what was not seen to move. */
  stand(step, outputs) {
    Object.assign(this, { step, outputs });
    const last = this.rows.at(-1);
    if (last?.step === step) return;
    if (last && last.step !== null) this.#push(null, {}, {});
    if (outputs) this.#push(step, {}, outputs, true);
  }

  /** Keep a commit's timesteps for the charts. */
  keep(step, inputs, outputs) {
    const first = step - outputs.length + 1;
    if (this.rows.at(-1)?.isTold && first === this.rows.at(-1).step) this.rows.pop(); // it was on its way here
    const last = this.rows.at(-1);
    if (last && first !== last.step + 1) this.#push(null, {}, {}); // a reset or lost messages break the lines
    outputs.forEach((row, t) => this.#push(first + t, inputs[t] ?? {}, row));
    if (this.rows.length > WINDOW) this.rows.splice(0, this.rows.length - WINDOW);
  }

  #push(step, inputs, outputs, isTold = false) {
    this.rows.push({ at: (this.rows.at(-1)?.at ?? 0) + 1, step, inputs, outputs, isTold });
  }
}

/** All known streams of one model. */
export class Streams {
  byName = new Map();
  truncated = false;
  isListed = false; // whether the service's own list was taken

  get live() {
    return [...this.byName.values()].filter((stream) => stream.isLive);
  }

  get(name) {
    if (!this.byName.has(name)) this.byName.set(name, new Stream(name));
    return this.byName.get(name);
  }

  /** Take the service's own list; what it does not know any more goes, unless it was seen just now. */
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

/** The list in the page: live streams first, then by name; arrow keys choose. */
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
    const found = this.sorted(streams).filter(({ name }) => name.toLowerCase().includes(wanted));
    this.#shown = found.slice(0, MOST_ROWS).map(({ name }) => name);
    const items = found.slice(0, MOST_ROWS).map((stream) => this.#row(stream, outputSpecs, stream.name === chosen));
    const placed = this.list.children;
    const inOrder = placed.length === items.length && items.every((item, i) => placed[i] === item);
    if (!inOrder) this.list.replaceChildren(...items);
    for (const name of this.#rows.keys()) if (!streams.byName.has(name)) this.#rows.delete(name);
    const id = this.#rows.get(chosen)?.item.id;
    if (id && this.#shown.includes(chosen)) this.list.setAttribute("aria-activedescendant", id);
    else this.list.removeAttribute("aria-activedescendant");
    this.note.textContent = this.#remark(found.length, streams, wanted);
  }

  #remark(found, streams, wanted) {
    if (!found) return wanted ? "No stream has this in its name." : "No streams yet.";
    if (found > MOST_ROWS) return `${number(found - MOST_ROWS)} more; filter to find them.`;
    return streams.truncated ? "The service keeps more than are listed here." : "";
  }

  #row(stream, outputSpecs, isChosen) {
    if (!this.#rows.has(stream.name)) this.#rows.set(stream.name, makeRow(stream.name));
    const { item, step, belief, seen } = this.#rows.get(stream.name);
    const set = (node, text) => node.textContent !== text && (node.textContent = text);
    item.setAttribute("aria-selected", String(isChosen));
    item.classList.toggle("live", stream.isLive);
    set(step, number(stream.step));
    set(belief, summary(stream.outputs, outputSpecs));
    set(seen, stream.seenAt > -Infinity ? ago(now() - stream.seenAt) : "idle");
    return item;
  }

  #key(event) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !this.#shown.length) return;
    event.preventDefault();
    const at = this.#shown.findIndex((name) => this.#rows.get(name).item.getAttribute("aria-selected") === "true");
    const to = Math.max(0, Math.min(this.#shown.length - 1, at + moves[event.key]));
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
    ["dot", "name", "step", "belief", "seen"].map((part) => {
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
