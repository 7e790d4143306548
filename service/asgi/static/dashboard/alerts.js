// The alarms of the chosen model that are raised now, as `stepwell alert` has written them.

import { getJson } from "./feed.js";
import { number } from "./shapes.js";

const SHOWN = 20;
const $ = (id) => document.getElementById(id);
const text = (node, value) => node.textContent !== value && (node.textContent = value);

/** What an alarm is about, in words: `silent since step 12`. */
export function sentence({ kind, step }) {
  const since = `step ${number(step)}`;
  return { when: `since ${since}`, silent: `silent after ${since}`, expired: `expired after ${since}` }[kind] ?? since;
}

/** How long ago a time in seconds since 1970 was, in its largest unit. */
export function ago(at, now) {
  const s = Math.max(0, now - at);
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ago` : `${Math.floor(s / 86400)} d ago`;
}

export class AlertCard {
  #shown = "";

  /** @param {{choose: Function}} on - `choose` gets a stream's name */
  constructor(on) {
    this.on = on;
  }

  setModel({ name }) {
    this.model = name;
    this.#show({ alerts: [], cursor: null });
  }

  /** Read what is raised; a service or a key that does not return it hides the card. */
  async refresh() {
    const model = this.model;
    const path = `v1/alerts?model=${encodeURIComponent(model)}&limit=${SHOWN}`;
    const found = await getJson(path).catch(() => ({ alerts: [], cursor: null }));
    if (model === this.model) this.#show(found);
  }

  #show({ alerts, cursor }) {
    $("alerts").hidden = !alerts.length;
    text($("alerts-note"), cursor ? `the first ${SHOWN}` : `${alerts.length} raised`);
    const now = Date.now() / 1000;
    const drawn = JSON.stringify(alerts.map((alarm) => [alarm.id, ago(alarm.at, now)]));
    if (drawn === this.#shown) return;
    this.#shown = drawn;
    $("alerts-list").replaceChildren(...alerts.map((alarm) => this.#item(alarm, now)));
  }

  #item(alarm, now) {
    const item = document.createElement("li");
    const rule = document.createElement("strong");
    const stream = document.createElement("button");
    const note = document.createElement("span");
    rule.textContent = alarm.rule;
    stream.type = "button";
    stream.textContent = alarm.stream;
    stream.addEventListener("click", () => this.on.choose(alarm.stream));
    note.className = "note";
    note.textContent = `${sentence(alarm)}, ${ago(alarm.at, now)}`;
    item.append(rule, stream, note);
    return item;
  }
}
