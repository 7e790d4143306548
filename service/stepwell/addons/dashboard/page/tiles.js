// The service in a few numbers: live streams, steps per second, latency, replayed responses.

import { quantile } from "./metrics.js";
import { counted, number } from "./shapes.js";

const SPARK_S = 60; // seconds in the line of steps per second
const SPARK_MIN_S = 12; // fewer do not fill the width
const SHORTEST_S = 0.5; // over a shorter time, a single timestep would be a high rate
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

export class Tiles {
  #rates = []; // of the last seconds
  #count = 0; // timesteps since the last of them
  #since = performance.now();

  /** Discard what belongs to the model before. */
  clear() {
    this.#rates = [];
    this.#restart();
  }

  /** Count timesteps. */
  count(timesteps) {
    this.#count += timesteps;
  }

  #restart() {
    [this.#count, this.#since] = [0, performance.now()];
  }

  /** Show how many streams are live, and of how many, once the service has listed them. */
  showStreams(live, { byName, isListed, isMore }) {
    text("live", live || isListed ? number(live) : "–");
    text("stored", isListed ? `of ${isMore ? "more than " : ""}${number(byName.size)} stored` : "");
    const title = live ? `${live} live · Stepwell` : "Stepwell";
    if (document.title !== title) document.title = title; // the same one would be sent to the browser again
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
    text("conflicts", replicas ? `to repeated requests; ${counted(replicas.total("conflicts"), "conflict")}` : "");
  }

  /** Show that no number is current; the reason is in the title. */
  showNone(reason) {
    for (const id of ["live", "rate", "latency", "replays"]) text(id, "–");
    for (const id of ["stored", "latency-note", "conflicts"]) text(id, "not known now");
    document.title = `${reason} · Stepwell`;
  }

  /** Draw the steps per second; called about every second, but not while nobody looks. `isKnown`: the service responds. */
  drawRate(isKnown) {
    const elapsed = (performance.now() - this.#since) / 1000;
    if (elapsed < SHORTEST_S) return;
    this.#rates = [...this.#rates, this.#count / elapsed].slice(-SPARK_S);
    this.#restart();
    const whole = this.#rates;
    const recent = whole.slice(-3);
    if (isKnown) text("rate", number(Math.round(recent.reduce((a, b) => a + b, 0) / recent.length)));
    const max = Math.max(1, ...whole);
    const width = Math.max(whole.length, SPARK_MIN_S);
    const points = whole.map((n, i) => `${(120 * (i + width - whole.length)) / (width - 1)},${30 - (27 * n) / max}`);
    $("rate-line").setAttribute("points", points.join(" "));
    $("rate-area").setAttribute("points", `${points.join(" ")} 120,32 ${points[0].split(",")[0]},32`);
  }
}
