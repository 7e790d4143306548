// The newest predictions of a stream in little memory, and how much they have changed.

const KEPT = 60; // predictions
const NEW = 15; // of them, those that are compared with the ones before
export const MAX_NUMBERS = 4; // of one prediction

export class Trend {
  #values = null; // (KEPT, numbers), a ring
  #size = 0; // numbers of one prediction that are kept
  #count = 0; // predictions so far

  /** Add a prediction: {output: numbers}. */
  add(row) {
    const numbers = Object.values(row).flat().slice(0, MAX_NUMBERS);
    if (!numbers.length) return;
    if (numbers.length !== this.#size) {
      this.#size = numbers.length;
      this.#values = new Float32Array(KEPT * this.#size);
      this.#count = 0;
    }
    this.#values.set(numbers, (this.#count % KEPT) * this.#size);
    this.#count += 1;
  }

  /** The number of predictions so far. */
  get count() {
    return this.#count;
  }

  /** The kept predictions, one array for each number, oldest first. */
  get lines() {
    const n = Math.min(this.#count, KEPT);
    const rows = Array.from({ length: n }, (_, i) => ((this.#count - n + i) % KEPT) * this.#size);
    return Array.from({ length: this.#size }, (_, i) => rows.map((row) => this.#values[row + i]));
  }

  /** For each number the mean of the newest predictions and of those before: [[before, now], ..]; empty if too few. */
  get means() {
    if (this.#count < 2 * NEW) return [];
    return this.lines.map((line) => [mean(line.slice(0, -NEW)), mean(line.slice(-NEW))]);
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * How much each of some trends has changed: the largest difference of its means, as a share of the range that this
 * number has over all of them. 0: nothing has changed, or there are too few predictions.
 */
export function changes(trends) {
  const means = trends.map((trend) => trend.means);
  const ranges = Array.from({ length: MAX_NUMBERS }, (_, i) => {
    const all = means.flatMap((pairs) => (pairs[i] ?? []).filter(Number.isFinite));
    return all.reduce((high, value) => Math.max(high, value), -Infinity) - all.reduce((low, value) => Math.min(low, value), Infinity);
  });
  return means.map((pairs) =>
    pairs.reduce((most, [before, now], i) => {
      const share = Math.abs(now - before) / ranges[i];
      return share > most ? share : most;
    }, 0),
  );
}
