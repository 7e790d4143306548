// The service in a few numbers: live streams, steps per second, latency, replayed responses.

import { quantile } from "./metrics.js";
import { number } from "./shapes.js";

const SPARK_S = 60; // seconds in the line of steps per second
const SPARK_MIN_S = 12; // fewer do not fill the width
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

export class Tiles {
  #perSecond = [0];

  /** Discard what belongs to the model before. */
  clear() {
    this.#perSecond = [0];
  }

  /** Count timesteps of this second. */
  count(timesteps) {
    this.#perSecond[this.#perSecond.length - 1] += timesteps;
  }

  /** Show how many streams are live, and of how many, once the service has listed them. */
  showStreams(live, { byName, isListed, isMore }) {
    text("live", live || isListed ? number(live) : "–");
    text("stored", isListed ? `of ${isMore ? "more than " : ""}${number(byName.size)} stored` : "");
    document.title = live ? `${live} live · Stepwell` : "Stepwell";
  }

  /** Show latency and replays of all replicas; null: this key cannot read metrics. */
  showMetrics(replicas) {
    const buckets = replicas?.recent(performance.now() / 1000) ?? [];
    const ms = (share) => {
      const value = quantile(buckets, share) * 1000;
      return Number.isNaN(value) ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
    };
    text("latency", ms(0.5));
    const hasSteps = buckets.at(-1)?.[1] > 0;
    text("latency-note", !replicas ? "this key cannot read metrics" : hasSteps ? `median; p99 ${ms(0.99)}` : "no steps just now");
    text("replays", replicas ? number(replicas.total("replays")) : "–");
    text("conflicts", replicas ? `retries, applied once; ${number(replicas.total("conflicts"))} concurrent changes retried` : "");
  }

  /** Show that no number is current, because the service does not respond. */
  showNone() {
    for (const id of ["live", "rate", "latency", "replays"]) text(id, "–");
    for (const id of ["stored", "latency-note", "conflicts"]) text(id, "not known now");
    document.title = "No response · Stepwell";
  }

  /** Draw the steps per second; called every second. `isKnown`: whether the service responds. */
  drawRate(isKnown) {
    const seconds = this.#perSecond;
    const whole = seconds.slice(0, -1);
    const recent = whole.slice(-3);
    if (recent.length && isKnown) text("rate", number(Math.round(recent.reduce((a, b) => a + b, 0) / recent.length)));
    const max = Math.max(1, ...whole);
    const width = Math.max(whole.length, SPARK_MIN_S);
    const points = whole.map((n, i) => `${(120 * (i + width - whole.length)) / (width - 1)},${30 - (27 * n) / max}`);
    $("rate-line").setAttribute("points", points.join(" "));
    const floor = points.length ? ` 120,32 ${points[0].split(",")[0]},32` : "";
    $("rate-area").setAttribute("points", points.join(" ") + floor);
    seconds.push(0);
    if (seconds.length > SPARK_S + 1) seconds.shift();
  }
}
