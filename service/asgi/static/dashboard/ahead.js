// What comes next by the model's own predictions: many rollouts from the live state, as a line with its interval.

import { pathOf, send } from "./feed.js";
import { flat } from "./shapes.js";

const SAMPLES = 40;
const LOW = 0.1; // the interval has 80 % of the samples in it
const SEED = 1; // the same chances each time, so that the picture moves with the stream alone

/** The value below which a share of sorted values lies; linear between them. */
export function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** Of samples `[sample][timestep][..]`, where each element goes: [{middle, low, high}], each an array over time. */
export function fans(samples) {
  const ways = samples.map((rows) => rows.map(flat));
  return ways[0][0].map((_, element) => {
    const sorted = ways[0].map((_, t) => ways.map((rows) => rows[t][element]).sort((a, b) => a - b));
    const line = (share) => sorted.map((values) => quantile(values, share));
    return { middle: line(0.5), low: line(LOW), high: line(1 - LOW) };
  });
}

/** Looks ahead of the chosen stream, again whenever it has moved; one request at a time. */
export class Lookahead {
  horizon = 0; // timesteps; 0: does not look
  found = null; // {step: where it went on from, horizon, outputs and inputs: fans by name}
  #asked = ""; // what the last request asked for
  #isBusy = false;

  /**
   * @param {{select: HTMLSelectElement, off: Element, note: Element, wanted: Function, found: Function}} on - where a
   *   person says how far, the choice not to, and where words go; `wanted` is called when somebody wants to look,
   *   `found` when there is something else to draw
   */
  constructor(on) {
    this.on = on;
    on.select?.addEventListener("change", () => {
      this.horizon = Number(on.select.value);
      this.forget();
      on.wanted();
    });
  }

  /** Let a person look ahead of a model's streams, or say why that cannot be. */
  offer({ feedback }) {
    const { select, off } = this.on;
    const can = Object.keys(feedback ?? {}).length > 0;
    select.disabled = !can;
    if (!can) select.value = "0";
    off.textContent = can ? "off" : "no feedback rule";
    select.title = can ? "" : "The model has no feedback rule: no output of it becomes an input of the next timestep.";
    this.horizon = Number(select.value);
  }

  /** Look no more, or at something else. */
  forget() {
    this.#asked = "";
    this.found = null;
    this.on.note.textContent = "";
    this.on.found();
  }

  /** Ask where a stream goes, unless that is known. */
  async renew(model, { name, step }, limits) {
    const question = JSON.stringify([model, name, step, this.horizon]);
    if (!this.horizon || this.#isBusy || question === this.#asked) return;
    const atMost = (wish, limit = Infinity) => Math.min(wish, limit);
    const [horizon, samples] = [atMost(this.horizon, limits.max_horizon), atMost(SAMPLES, limits.max_samples)];
    this.#asked = question;
    this.#isBusy = true;
    try {
      const answer = await send("POST", pathOf(model, name, "rollout"), { horizon, samples, seed: SEED });
      if (this.#asked !== question) return; // another was chosen meanwhile
      const all = (tensors) => Object.fromEntries(Object.entries(tensors).map(([one, rows]) => [one, fans(rows)]));
      const [outputs, inputs, byChance] = [all(answer.outputs), all(answer.next), "seed" in answer];
      this.found = { step: answer.step - horizon, horizon, outputs, inputs };
      const ways = `median of ${samples} ways, 80% of them in the band`;
      const words = byChance ? ways : "the only way, no chance has a part in it";
      this.on.note.textContent = `${horizon} ahead: ${words}`;
    } catch (problem) {
      if (this.#asked !== question) return;
      this.found = null;
      this.on.note.textContent = `Cannot look ahead: ${problem.message}`;
    } finally {
      this.#isBusy = false;
      this.on.found();
    }
  }

  /**
   * Where each series goes beyond the rows of a stream: {at: the place on the time axis that it goes on from, horizon,
   * fans: one with `horizon + 1` values from there on, or null, for each series}. Null where nothing is known of that.
   */
  beyond(rows, which, series) {
    const found = this.found;
    const from = found ? rows.findLastIndex(({ step }) => step === found.step) : -1;
    if (from < 0 || rows.slice(from).some(({ step }) => step === null)) return null; // a reset, or a gap, lies between
    const ahead = series.map(({ tensor, index }) => {
      const fan = found[which][tensor]?.[index];
      if (!fan) return null;
      // A prediction is made into the input of the timestep after it, so the first input is not among them.
      const before = which === "inputs" ? [null, null] : [rows[from].outputs[tensor]?.[index] ?? null];
      const shifted = (line) => [...before, ...line].slice(0, found.horizon + 1);
      return { middle: shifted(fan.middle), low: shifted(fan.low), high: shifted(fan.high) };
    });
    return { at: rows[from].at, horizon: found.horizon, fans: ahead };
  }
}
