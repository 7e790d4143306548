// The fleet: a small chart of each stream's newest predictions, those that changed most first.

import { refill } from "../refill.js";
import { changes, MAX_NUMBERS } from "../streams/trend.js";
import { counted, number, percent, summary } from "../shapes.js";
import { colour, lineClass, theme } from "./plot.js";

const CELLS = 48; // more small charts cannot be overlooked at once
const SORT_MS = 4000; // the order is kept for so long, so that a cell can be clicked
const [WIDTH, HEIGHT] = [160, 44];

export class Fleet {
  #cells = new Map(); // name -> {item, ...its parts}
  #order = []; // [{stream, change}]
  #sortedAt = -Infinity;

  /** @param {{list: HTMLElement, note: HTMLElement, choose: Function}} parts */
  constructor(parts) {
    Object.assign(this, parts, { colours: coloursNow() });
    theme.addEventListener("change", () => (this.colours = coloursNow()));
  }

  /** Draw the streams that match a search; called every second while the fleet is shown. */
  draw(streams, outputSpecs, text) {
    const key = `${text} ${streams.byName.size}`;
    const isOld = this.streams !== streams || this.key !== key || performance.now() - this.#sortedAt > SORT_MS;
    if (isOld) Object.assign(this, { streams, key }).#sort(text);
    const { colours } = this;
    const shown = this.#order.slice(0, CELLS);
    const cells = shown.map(({ stream, change }) => this.#cell(stream, change, outputSpecs, colours));
    const placed = this.list.children;
    if (placed.length !== cells.length || cells.some((cell, i) => placed[i] !== cell)) refill(this.list, cells);
    const names = new Set(shown.map(({ stream }) => stream.name));
    for (const name of this.#cells.keys()) if (!names.has(name)) this.#cells.delete(name);
    const more = this.#order.length - shown.length;
    const note = shown.length ? `${counted(this.#order.length, "stream")} with predictions since this page was opened${more > 0 ? `; the ${CELLS} that changed most are shown` : ", those that changed most first"}.` : "No stream has had a prediction since this page was opened.";
    if (this.note.textContent !== note) this.note.textContent = note;
  }

  #sort(text) {
    this.#sortedAt = performance.now();
    const all = this.streams.matching(text).matches.filter(({ seenAt }) => seenAt > -Infinity);
    const shares = changes(all.map(({ trend }) => trend));
    this.#order = all.map((stream, i) => ({ stream, change: shares[i] }));
    this.#order.sort((a, b) => b.change - a.change); // stable: streams without a change stay in the list's order
  }

  #cell(stream, change, specs, colours) {
    if (!this.#cells.has(stream.name)) this.#cells.set(stream.name, makeCell(stream.name, this.choose));
    const cell = this.#cells.get(stream.name);
    const { item, button, canvas, changed, value } = cell;
    const drawn = `${stream.trend.count} ${stream.step} ${change} ${colours} ${devicePixelRatio}`;
    if (cell.stream === stream && cell.drawn === drawn) return item;
    Object.assign(cell, { stream, drawn });
    value.textContent = summary(stream.outputs, specs);
    changed.textContent = change ? `changed ${percent(change)}` : "";
    button.title = `${stream.name}: step ${number(stream.step)}. Change: the last predictions against those before, as a share of the range over all streams.`;
    drawLines(canvas, stream.trend.lines, colours);
    return item;
  }
}

const coloursNow = () => Array.from({ length: MAX_NUMBERS }, (_, i) => colour(`--${lineClass("out", i)}`));

function drawLines(canvas, lines, colours) {
  const ctx = canvas.getContext("2d");
  const ratio = devicePixelRatio;
  Object.assign(canvas, { width: WIDTH * ratio, height: HEIGHT * ratio });
  const values = lines.flat().filter(Number.isFinite);
  if (!values.length) return;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const y = (value) => (HEIGHT - 3 - ((HEIGHT - 6) * (value - low)) / (high - low || 1)) * ratio;
  ctx.lineWidth = 1.4 * ratio;
  lines.forEach((line, i) => {
    ctx.strokeStyle = colours[i];
    ctx.beginPath();
    line.forEach((value, t) => Number.isFinite(value) && ctx.lineTo(((WIDTH * t) / Math.max(1, line.length - 1)) * ratio, y(value)));
    ctx.stroke();
  });
}

function makeCell(name, choose) {
  const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
  const [item, button, canvas] = [make("li", "cell"), make("button", ""), make("canvas", "")];
  const [changed, value] = [make("span", "change"), make("span", "note")];
  button.type = "button";
  canvas.setAttribute("aria-hidden", "true");
  button.append(make("span", "name", name), changed, canvas, value);
  button.addEventListener("click", () => choose(name));
  item.append(button);
  return { item, button, canvas, changed, value };
}
