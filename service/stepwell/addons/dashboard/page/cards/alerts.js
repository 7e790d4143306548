// The alarms of the chosen model that are raised now, as `stepwell alert` has written them.

import { refill } from "../refill.js";
import { getJson } from "../service.js";
import { ago, number } from "../shapes.js";

const READ = 1000; // alarms, which the service has by their ids
const SHOWN = 20;
const SEVERITIES = ["critical", "warning", "info"];
const KINDS = ["when", "refused", "expired", "silent"]; // what the values show is more urgent than what is missing

/** Alarms by severity (none is a warning), then by kind, and of the same one the newest first. */
export function mostUrgent(alerts) {
  const place = (list, one) => (list.includes(one) ? list.indexOf(one) : list.length);
  const severity = (alarm) => place(SEVERITIES, alarm.severity ?? "warning");
  const kind = (alarm) => place(KINDS, alarm.kind);
  return [...alerts].sort((a, b) => severity(a) - severity(b) || kind(a) - kind(b) || b.at - a.at);
}

/** What an alarm is about, in words: `silent since step 12`. */
export function sentence({ kind, step, code }) {
  const at = `step ${number(step)}`;
  const sentences = {
    when: `since ${at}`,
    silent: `silent after ${at}`,
    expired: `expired after ${at}`,
    refused: `refused after ${at}: ${code}`,
  };
  return sentences[kind] ?? at;
}

/**
 * How long each alarm's stream has been silent since the alarm, as a part of the longest silence that is shown; null for
 * alarms about something else.
 * @param {{kind?: string, at: number}[]} alerts
 * @param {number} now - seconds since 1970
 */
export function silences(alerts, now) {
  const lengths = alerts.map(({ kind, at }) => (kind === "silent" ? Math.max(0, now - at) : null));
  const longest = Math.max(1, ...lengths);
  return lengths.map((length) => length && length / longest);
}

export class AlertCard {
  #shown = "";

  /**
   * @param {{panel: HTMLElement, facts: HTMLElement, body: HTMLElement}} parts
   * @param {Function} choose - opens a stream by its name
   */
  constructor(parts, choose) {
    Object.assign(this, parts, { choose });
    this.list = Object.assign(document.createElement("ul"), { className: "alarms" });
    this.body.append(this.list);
  }

  setModel({ name }) {
    this.model = name;
    this.#show({ alerts: [], cursor: null });
  }

  /** Read what is raised; a service or a key that does not return it hides the card. */
  async refresh() {
    const model = this.model;
    const path = `v1/alerts?model=${encodeURIComponent(model)}&limit=${READ}`;
    const found = await getJson(path).catch(() => ({ alerts: [], cursor: null }));
    if (model === this.model) this.#show(found);
  }

  #show({ alerts: found, cursor }) {
    const alerts = mostUrgent(found).slice(0, SHOWN);
    this.panel.hidden = !alerts.length;
    const raised = cursor ? `more than ${number(READ)} raised` : `${number(found.length)} raised`;
    this.facts.textContent = found.length > SHOWN ? `${raised}, the ${SHOWN} most urgent ones` : raised;
    const now = Date.now() / 1000;
    const drawn = JSON.stringify(alerts.map((alarm) => [alarm.id, ago(now - alarm.at)]));
    if (drawn === this.#shown) return;
    const bars = silences(alerts, now);
    if (refill(this.list, alerts.map((alarm, i) => this.#item(alarm, now, bars[i])))) this.#shown = drawn;
  }

  #item(alarm, now, silence) {
    const item = document.createElement("li");
    item.dataset.key = alarm.id;
    const rule = document.createElement("strong");
    const stream = document.createElement("button");
    const note = document.createElement("span");
    rule.textContent = alarm.rule;
    stream.type = "button";
    stream.textContent = alarm.stream;
    stream.addEventListener("click", () => this.choose(alarm.stream));
    note.className = "note";
    const raised = ago(now - alarm.at);
    note.textContent = `${alarm.severity ? `${alarm.severity}: ` : ""}${sentence(alarm)}, raised ${raised === "now" ? raised : `${raised} ago`}`;
    item.append(rule, stream, note);
    if (silence !== null) {
      const bar = Object.assign(document.createElement("span"), { className: "silence", title: `silent for ${raised}` });
      bar.style.setProperty("--length", silence);
      item.append(bar);
    }
    return item;
  }
}
