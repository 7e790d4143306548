// The requests that the service rejected since the page was opened, by reason, but the page's look-ups of a stream.

import { refill } from "../refill.js";
import { get } from "../service.js";
import { ago, number } from "../shapes.js";

export class RefusalsCard {
  #byCode = new Map(); // code -> {count, at}
  #own = new Map(); // code -> rejected look-ups that the counts of the service do not contain yet
  #titles = null; // code -> what happened, from the page of errors

  /** @param {{panel: HTMLElement, facts: HTMLElement, body: HTMLElement}} parts */
  constructor(parts) {
    Object.assign(this, parts);
    this.list = document.createElement("ul");
    this.body.append(this.list);
    this.facts.textContent = "since this page was opened, of all models";
  }

  /** Leave a rejected look-up of this page out of the counts. */
  addOwn(code) {
    this.#own.set(code, (this.#own.get(code) ?? 0) + 1);
  }

  /** Count rejected requests: {code: count}. */
  add(refusals) {
    for (const [code, all] of Object.entries(refusals)) {
      const own = Math.min(all, this.#own.get(code) ?? 0);
      this.#own.set(code, (this.#own.get(code) ?? 0) - own);
      const count = all - own;
      if (!count) continue;
      const before = this.#byCode.get(code)?.count ?? 0;
      this.#byCode.set(code, { count: before + count, at: performance.now() });
    }
  }

  async refresh() {
    if (!this.#byCode.size) return;
    this.#titles ??= await titles();
    const newest = [...this.#byCode].sort(([, a], [, b]) => b.at - a.at);
    refill(this.list, newest.map(([code, one]) => this.#item(code, one)));
    this.panel.hidden = false;
  }

  #item(code, { count, at }) {
    const make = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text });
    const item = make("li", "refusal", "");
    item.dataset.key = code;
    const link = make("a", "", code);
    link.href = new URL(`docs/errors#${code}`, document.baseURI);
    const when = ago((performance.now() - at) / 1000);
    item.append(
      make("strong", "", number(count)),
      link,
      make("span", "", this.#titles.get(code) ?? ""),
      make("span", "note", when === "now" ? when : `${when} ago`),
    );
    return item;
  }
}

/** What each code means, from the page of errors; empty if it cannot be read. */
async function titles() {
  try {
    const page = new DOMParser().parseFromString(await (await get("docs/errors")).text(), "text/html");
    return new Map([...page.querySelectorAll("[data-code]")].map((node) => [node.dataset.code, node.dataset.title]));
  } catch {
    return new Map();
  }
}
