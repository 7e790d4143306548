// The list of streams in the page: live ones first, then by name; arrow keys select.

import { refill } from "../refill.js";
import { ago, number, summary } from "../shapes.js";

const ROWS = 200; // rows in the list at first, and how many more the button adds
const SORT_MS = 1000; // the order is kept for so long: streams that stop and go on would move at each rendering
const FOLLOWED_MS = 8000;
const now = () => performance.now() / 1000;

export class StreamList {
  #rows = new Map(); // name -> {item, ...its parts}
  #shown = [];
  #max = ROWS;
  #chosen = null;
  #followedUntil = 0; // until then the chosen stream stays in view, while other streams become live and move before it
  #order = null; // {matches, live, streams, key, at} of the last sorting

  /** @param {{list: HTMLElement, note: HTMLElement, more: HTMLButtonElement, search: Search, choose: Function}} parts */
  constructor({ list, note, more, search, choose }) {
    Object.assign(this, { list, note, more, search, choose });
    list.addEventListener("click", ({ target }) => {
      const item = target.closest("[role=option]");
      if (item) choose(item.dataset.name, true);
    });
    list.addEventListener("keydown", (event) => this.#key(event));
    for (const type of ["wheel", "pointerdown"]) list.addEventListener(type, () => (this.#followedUntil = 0), { passive: true });
    more.addEventListener("click", () => {
      this.#max += ROWS;
      search.more();
    });
  }

  /** Show the first rows again. */
  restart() {
    this.#max = ROWS;
    this.list.scrollTop = 0;
  }

  /** Show the streams that match the search, with marks at those that are compared; returns how many of all are live. */
  render(streams, outputSpecs, chosen, compared = []) {
    const { matches, live } = this.#sorted(streams);
    const first = matches.slice(0, this.#max);
    this.#shown = first.map(({ name }) => name);
    const items = first.map((stream) => this.#row(stream, outputSpecs, stream.name === chosen, compared.includes(stream.name)));
    const placed = this.list.children;
    const inOrder = placed.length === items.length && items.every((item, i) => placed[i] === item);
    if (!inOrder) refill(this.list, items);
    for (const name of this.#rows.keys()) if (!streams.byName.has(name)) this.#rows.delete(name);
    if (chosen !== this.#chosen) [this.#chosen, this.#followedUntil] = [chosen, performance.now() + FOLLOWED_MS];
    if (performance.now() < this.#followedUntil) this.reveal(chosen);
    const id = this.#rows.get(chosen)?.item.id;
    if (id && this.#shown.includes(chosen)) this.list.setAttribute("aria-activedescendant", id);
    else this.list.removeAttribute("aria-activedescendant");
    const text = this.#noteText(matches.length, streams);
    if (this.note.textContent !== text) this.note.textContent = text;
    this.more.hidden = matches.length <= this.#max && !this.search.hasMore;
    return live;
  }

  #sorted(streams) {
    const key = `${streams.byName.size} ${this.search.text}`;
    const isOld = this.#order?.streams !== streams || this.#order.key !== key || performance.now() - this.#order.at > SORT_MS;
    if (isOld) this.#order = { ...streams.matching(this.search.text), streams, key, at: performance.now() };
    return this.#order;
  }

  /** Scroll the list, not the page, to a stream's row, if it is in the list. */
  reveal(name) {
    if (!this.#shown.includes(name)) return;
    const { list } = this;
    const { offsetTop: top, offsetHeight: height } = this.#rows.get(name).item;
    list.scrollTop = Math.max(Math.min(list.scrollTop, top), top + height - list.clientHeight);
  }

  #noteText(count, { byName, isListed }) {
    const { text, isBusy, problem, hasMore } = this.search;
    if (problem) return `The service could not search: ${problem}`;
    if (!count && isBusy) return "Searching …";
    if (!count && text) return `No stream's id begins with “${text}”, and none of the ${number(byName.size)} loaded ids contains it.`;
    if (!count) return isListed ? "No streams yet." : "Loading the streams …";
    if (hasMore || count > this.#max) return `${number(Math.min(count, this.#max))} are shown; the service has more.`;
    return "";
  }

  #row(stream, outputSpecs, isChosen, isCompared) {
    if (!this.#rows.has(stream.name)) this.#rows.set(stream.name, makeRow(stream.name));
    const row = this.#rows.get(stream.name);
    const { item, step, prediction, seen } = row;
    const { isLive, outputs } = stream;
    const age = stream.seenAt > -Infinity ? ago(now() - stream.seenAt) : "idle";
    const drawn = `${stream.step} ${isChosen} ${isCompared} ${isLive} ${age}`;
    if (row.drawn === drawn && row.outputs === outputs) return item; // most rows, each time
    Object.assign(row, { drawn, outputs });
    const set = (node, text) => node.textContent !== text && (node.textContent = text);
    if (item.getAttribute("aria-selected") !== String(isChosen)) item.setAttribute("aria-selected", String(isChosen));
    item.classList.toggle("live", isLive);
    item.classList.toggle("compared", isCompared);
    set(step, number(stream.step));
    set(prediction, summary(outputs, outputSpecs));
    set(seen, age);
    return item;
  }

  #key(event) {
    if (event.key === "Enter") return this.#open(event);
    const offsets = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in offsets) || !this.#shown.length) return;
    event.preventDefault();
    const from = this.#shown.findIndex((name) => this.#rows.get(name).item.getAttribute("aria-selected") === "true");
    const to = Math.max(0, Math.min(this.#shown.length - 1, from + offsets[event.key]));
    this.choose(this.#shown[to], false);
    this.reveal(this.#shown[to]);
  }

  /** Enter in the list moves the focus to the chosen stream. */
  #open(event) {
    const chosen = this.#shown.find((name) => this.#rows.get(name).item.getAttribute("aria-selected") === "true");
    if (!chosen) return;
    event.preventDefault();
    this.choose(chosen, true);
    document.getElementById("stream-name").focus();
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
  parts.step.title = "step: timesteps so far";
  return { item, ...parts };
}
