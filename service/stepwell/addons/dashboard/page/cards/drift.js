// The drift of the chosen model: the features whose last hour differs most from the reference. Shown only with a reference.

import { getJson } from "../service.js";
import { number } from "../shapes.js";

const EVERY_MS = 10_000;
const MOST_DRIFTED = 8; // features
const WARN = 0.2; // a PSI from which on the distribution has changed much
const COLUMNS = ["feature", "PSI", "PSI 24 h", "missing", "out of range", "median"];

/** The features with values, of inputs and outputs, the greatest PSI first; without one they are last. */
export function mostDrifted({ windows }) {
  const rows = ["inputs", "outputs"].flatMap((side) =>
    Object.entries(windows["1h"][side])
      .filter(([, { count, missing }]) => count || missing)
      .map(([name, now]) => ({ name, now, day: windows["24h"][side][name] })),
  );
  return rows.sort((a, b) => (b.now.psi ?? -1) - (a.now.psi ?? -1));
}

export class DriftCard {
  #model = "";
  #readAt = -Infinity;

  /** @param {{panel: HTMLElement, facts: HTMLElement, body: HTMLElement}} parts */
  constructor(parts) {
    Object.assign(this, parts);
    this.rows = make("tbody");
    const line = make("tr");
    line.append(...COLUMNS.map((name) => Object.assign(make("th", name), { scope: "col" })));
    const [table, top] = [make("table"), make("thead")];
    top.append(line);
    table.append(top, this.rows);
    this.body.append(table);
  }

  setModel({ name }) {
    this.#model = name;
    this.#readAt = -Infinity;
    this.panel.hidden = true;
  }

  async refresh() {
    if (performance.now() < this.#readAt + EVERY_MS) return;
    this.#readAt = performance.now();
    const model = this.#model;
    // a service or a key that does not return it hides the card
    const found = await getJson(`v1/models/${encodeURIComponent(model)}/drift`).catch(() => null);
    if (model === this.#model) this.#show(found);
  }

  #show(found) {
    const features = found?.reference ? mostDrifted(found) : [];
    this.panel.hidden = !features.length;
    const drifted = features.filter(({ now }) => now.psi > WARN).length;
    const hidden = features.length - MOST_DRIFTED;
    this.facts.textContent = [
      drifted ? `${number(drifted)} of ${number(features.length)} features above ${WARN}` : `no feature above ${WARN}`,
      "last hour, sampled",
      ...(hidden > 0 ? [`the first ${MOST_DRIFTED}`] : []),
    ].join(" · ");
    this.rows.replaceChildren(...features.slice(0, MOST_DRIFTED).map(row));
  }
}

function row({ name, now, day }) {
  const line = make("tr");
  const head = Object.assign(make("th", name), { scope: "row" });
  const cells = [psi(now.psi), psi(day?.psi), share(now.missing), share(now.outside), value(now.quantiles["0.5"])];
  line.append(head, ...cells.map((content) => make("td", content)));
  if (now.psi > WARN) line.cells[1].className = "drifted";
  return line;
}

const psi = (found) => (found == null ? "–" : found.toFixed(3));
const share = (found) => (found == null ? "–" : `${(100 * found).toFixed(1)}%`);
const value = (found) => (found == null ? "–" : number(found));

function make(tag, content = "", className = "") {
  return Object.assign(document.createElement(tag), { className, textContent: content });
}
