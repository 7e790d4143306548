// Several streams in one chart: the same number of each, over their newest timesteps or by their steps.

import { keepInAddress, readAddress, writeAddress } from "../address.js";
import { counted, finite, number, seriesOf } from "../shapes.js";
import { Plot } from "./plot.js";

export const MAX_COMPARED = 8; // more lines cannot be told apart
const FEWEST = 20; // positions
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

/** A number of a model in an address: `outputs:activity:2`. */
const keyOf = (which, { tensor, index }) => `${which}:${tensor}:${index}`;

/** The rows of a stream since its steps last went back, by step. */
export function currentRows(rows) {
  const found = new Map();
  for (let i = rows.length - 1, before = Infinity; i >= 0; i -= 1) {
    const { step } = rows[i];
    if (step === null) continue;
    if (step >= before) break;
    found.set((before = step), rows[i]);
  }
  return found;
}

/**
 * The lines of some streams over the same positions: {positions, lines}; null where a stream has no value.
 *
 * @param {{rows: object[]}[]} streams
 * @param {{which: "inputs" | "outputs", tensor: string, index: number}} field
 * @param {"newest" | "step"} align - positions are timesteps before the newest one, 0, or steps
 * @param {number} most - positions; fewer, if no stream has so many timesteps
 */
export function linesOf(streams, { which, tensor, index }, align, most) {
  const all = streams.map(({ rows }) => currentRows(rows));
  const ends = all.map((rows) => (rows.size ? rows.keys().next().value : null)); // the newest step is the first
  const length = Math.min(most, Math.max(FEWEST, ...all.map(({ size }) => size)));
  const end = align === "step" ? Math.max(1, ...ends.filter((step) => step !== null)) : 0;
  const first = align === "step" ? Math.max(1, end - length + 1) : 1 - length;
  const positions = Array.from({ length: end - first + 1 }, (_, i) => first + i);
  const lines = all.map((rows, k) => {
    const shift = align === "step" ? 0 : ends[k];
    return positions.map((at) => finite(rows.get(at + shift)?.[which][tensor]?.[index]));
  });
  return { positions, lines };
}

export class Comparison {
  names = []; // the compared streams
  #fields = []; // [{key, which, tensor, index, name}]
  #plot;
  #isFull = false; // whether another stream was to be added to as many as there can be

  /** @param {{onChange: Function}} on - called when other streams are compared, or drawn in another way */
  constructor(on) {
    this.on = on;
    const restart = () => on.onChange();
    this.#plot = new Plot($("compare-plot"), $("compare-legend"), "cmp", { onZoom() {}, onPoint() {} });
    keepInAddress($("align"), "align", restart);
    $("field").addEventListener("change", () => {
      writeAddress({ field: $("field").value });
      restart();
    });
    window.addEventListener("hashchange", () => this.#read());
  }

  /** Offer the numbers of a model, and compare the streams of the address. */
  setModel({ inputs, outputs }) {
    const groups = Object.entries({ outputs: ["Predictions", outputs], inputs: ["Inputs", inputs] });
    this.#fields = groups.flatMap(([which, [, specs]]) => seriesOf(specs).series.map((one) => ({ ...one, which, key: keyOf(which, one) })));
    $("field").replaceChildren(
      ...groups.map(([which, [label]]) => {
        const group = Object.assign(document.createElement("optgroup"), { label });
        group.append(...this.#fields.filter((one) => one.which === which).map(({ name, key }) => new Option(name, key)));
        return group;
      }),
    );
    this.#read();
  }

  /** Add a stream, or remove it. */
  toggle(name) {
    const isThere = this.names.includes(name);
    this.#isFull = !isThere && this.names.length >= MAX_COMPARED;
    if (this.#isFull) return this.on.onChange();
    this.#set(isThere ? this.names.filter((one) => one !== name) : [...this.names, name]);
  }

  #read() {
    const { compare, field } = readAddress();
    if (this.#fields.some(({ key }) => key === field)) $("field").value = field;
    this.#set([...new Set(compare.split(",").filter(Boolean))].slice(0, MAX_COMPARED));
  }

  #set(names) {
    this.names = names;
    this.#isFull = false;
    if (readAddress().compare !== names.join()) writeAddress({ compare: names.join() });
    $("compare-streams").replaceChildren(...names.map((name) => this.#removal(name)));
    this.on.onChange();
  }

  #removal(name) {
    const item = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${name} ✕` });
    button.setAttribute("aria-label", `Remove ${name} from the comparison`);
    button.addEventListener("click", () => this.toggle(name));
    item.append(button);
    return item;
  }

  /** Draw the compared streams; `byName` has the streams that the page knows. */
  draw(byName) {
    const { names } = this;
    const streams = names.map((name) => byName.get(name) ?? { rows: [] });
    $("compare-figure").hidden = !names.length;
    text("compare-note", this.#note(streams));
    const field = this.#fields.find(({ key }) => key === $("field").value);
    if (!names.length || !field) return;
    const { positions, lines } = linesOf(streams, field, $("align").value, Number($("last").value));
    this.#plot.setSeries(names.map((name) => ({ name, ...(field.unit && { unit: field.unit }) })));
    const label = $("align").value === "newest" ? "timesteps before the newest" : "step";
    this.#plot.draw(positions.map((step) => ({ step, time: 0 })), [positions, ...lines], null, [], label);
    $("compare-plot").setAttribute("aria-label", `${field.name} of ${counted(names.length, "stream")}; now ${this.#plot.summary}`);
  }

  #note(streams) {
    if (!streams.length) return "Select streams in the list to add them. The address has the comparison, so that a link shows it.";
    if (this.#isFull) return `At most ${MAX_COMPARED} streams are compared. Remove one first.`;
    const waiting = this.names.filter((_, i) => !streams[i].rows.length);
    return waiting.length ? `No timestep since this page was opened: ${waiting.join(", ")}.` : `${number(streams.length)} of at most ${MAX_COMPARED} streams; select others in the list to add them.`;
  }
}
