// The forecast of the chosen stream: rollouts from its current state, drawn as a median with an interval.

import { readAddress } from "../address.js";
import { modelOf } from "../service.js";
import { flat } from "../shapes.js";

const SAMPLES = 40;
const LOW = 0.1; // the interval contains 80 % of the samples
const SEED = 1; // the same seed each time, so that the forecast changes only with the stream

/** The quantile of sorted values at `share`, linearly interpolated. */
export function quantile(sorted, share) {
  const position = share * (sorted.length - 1);
  const low = Math.floor(position);
  return sorted[low] + (position - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** Quantiles of samples `[sample][timestep][..]` per element: [{middle, low, high}], each an array over time. */
export function fans(samples) {
  const flattened = samples.map((rows) => rows.map(flat));
  return flattened[0][0].map((_, element) => {
    const sorted = flattened[0].map((_, t) => flattened.map((rows) => rows[t][element]).sort((a, b) => a - b));
    const line = (share) => sorted.map((values) => quantile(values, share));
    return { middle: line(0.5), low: line(LOW), high: line(1 - LOW) };
  });
}

/** Requests the forecast of the chosen stream, again after each step; one request at a time. */
export class Forecast {
  horizon = 0; // timesteps; 0: no forecast
  found = null; // {step: the step it starts from, horizon, outputs and inputs: fans by tensor name}
  #requested = ""; // key of the last request
  #isBusy = false;

  /**
   * @param {{select: HTMLSelectElement, off: Element, note: Element, onChange: Function}} on - the choice of the horizon,
   *   its option "off", and the element for messages; `onChange` is called when the forecast has changed
   */
  constructor(on) {
    this.on = on;
  }

  /** Use the horizon that is selected. */
  restart() {
    this.horizon = Number(this.on.select.value);
    this.clear();
  }

  /** Enable forecasts for a model, or disable them and show the reason. */
  setModel({ feedback }) {
    const { select, off } = this.on;
    const isPossible = Object.keys(feedback ?? {}).length > 0;
    select.disabled = !isPossible;
    select.value = isPossible ? readAddress().forecast : "0";
    if (!select.value) select.value = "0"; // the address has another number
    off.textContent = isPossible ? "off" : "no feedback rule";
    select.title = isPossible ? "" : "The model has no feedback rule: no output becomes an input of the next timestep.";
    this.horizon = Number(select.value);
  }

  /** Discard the forecast. */
  clear() {
    this.#requested = "";
    this.found = null;
    this.on.note.textContent = "";
    this.on.onChange();
  }

  /** Request the forecast of a stream, unless the current one is up to date. */
  async refresh(model, { name, step }, limits) {
    const wanted = JSON.stringify([model, name, step, this.horizon]);
    if (!this.horizon || this.#isBusy || wanted === this.#requested) return;
    const atMost = (value, limit = Infinity) => Math.min(value, limit);
    const [horizon, samples] = [atMost(this.horizon, limits.max_horizon), atMost(SAMPLES, limits.max_samples)];
    this.#requested = wanted;
    this.#isBusy = true;
    try {
      const response = await modelOf(model).stream(name).rollout(horizon, { samples, seed: SEED });
      if (this.#requested !== wanted) return; // another stream or horizon was chosen meanwhile
      const all = (tensors) => Object.fromEntries(Object.entries(tensors).map(([name, rows]) => [name, fans(rows)]));
      const [outputs, inputs, isSampled] = [all(response.outputs), all(response.next), "seed" in response];
      this.found = { step: response.step - horizon, horizon, outputs, inputs };
      const kind = isSampled ? `median of ${samples} samples with 80% interval` : "deterministic";
      this.on.note.textContent = `Forecast of ${horizon} timesteps (${kind})`;
    } catch (problem) {
      if (this.#requested !== wanted) return;
      this.found = null;
      if (problem.retry === "same") this.#requested = ""; // requested again in a second
      this.on.note.textContent = `No forecast: ${problem.message}`;
    } finally {
      this.#isBusy = false;
      this.on.onChange();
    }
  }

  /**
   * The forecast of each series after the rows of a stream: {at: the position on the time axis where it starts, horizon,
   * fans: for each series one with `horizon + 1` values from there on, or null}. Null if there is no valid forecast.
   */
  after(rows, which, series) {
    const found = this.found;
    const from = found ? rows.findLastIndex(({ step }) => step === found.step) : -1;
    if (from < 0 || rows.slice(from).some(({ step }) => step === null)) return null; // a reset or a gap lies between
    const intervals = series.map(({ tensor, index }) => {
      const fan = found[which][tensor]?.[index];
      if (!fan) return null;
      // A prediction becomes the input of the next timestep, so the first input is not in the forecast.
      const before = which === "inputs" ? [null, null] : [rows[from].outputs[tensor]?.[index] ?? null];
      const shifted = (line) => [...before, ...line].slice(0, found.horizon + 1);
      return { middle: shifted(fan.middle), low: shifted(fan.low), high: shifted(fan.high) };
    });
    return { at: rows[from].at, horizon: found.horizon, fans: intervals };
  }
}
