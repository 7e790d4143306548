// What stages that learn have computed: intervals around predictions, thresholds of signals, weights of readouts.

import { elementNames } from "../shapes.js";

/** The outputs of stages of a kind that are one of their values: those that the model answers. */
const valuesOf = (model, kind, value) => model.outputs.filter(({ stage }) => stage?.kind === kind && stage.value === value);

/**
 * The intervals around predictions: [{of, low, high, horizon, truth: {input, place}}]; `of`, `low` and `high` are names of
 * outputs, and `of` may be one that is not answered.
 */
export function intervalsOf(model) {
  return valuesOf(model, "Conformal", "low").flatMap((low) => {
    const { of, truth, horizon } = low.stage;
    const high = valuesOf(model, "Conformal", "high").find(({ stage }) => stage.of === of && stage.truth === truth && stage.horizon === horizon);
    const [, input, place] = /^(.*?)(?:\[(\d+)\])?$/.exec(truth);
    return high ? [{ of, low: low.name, high: high.name, horizon, truth: { input, place: place === undefined ? null : Number(place) } }] : [];
  });
}

/** The thresholds of a part of the model, `inputs` or `outputs`: {name of the signal: name of its threshold}. */
export function thresholdsOf(model, which) {
  const names = new Set(model[which].map(({ name }) => name));
  const found = valuesOf(model, "AdaptiveThreshold", "threshold").filter(({ stage }) => names.has(stage.of));
  return Object.fromEntries(found.map(({ name, stage }) => [stage.of, name]));
}

/**
 * The series of predictions, with how those of stages are drawn: `like`, the index of the series that they belong to, and
 * for the upper end of an interval `low`, the index of the lower end.
 */
export function styled(series, model) {
  const at = (tensor, index) => series.findIndex((one) => one.tensor === tensor && one.index === index);
  const thresholds = thresholdsOf(model, "outputs");
  const signal = Object.fromEntries(Object.entries(thresholds).map(([of, name]) => [name, of]));
  for (const { of, low, high } of intervalsOf(model)) Object.assign(signal, { [low]: of, [high]: of });
  const lows = Object.fromEntries(intervalsOf(model).map(({ low, high }) => [high, low]));
  return series.map((one) => {
    if (!(one.tensor in signal)) return one;
    const like = at(signal[one.tensor], one.index);
    const low = one.tensor in lows ? at(lows[one.tensor], one.index) : -1;
    return { ...one, isBound: true, ...(like >= 0 && { like }), ...(low >= 0 && { low }) };
  });
}

/**
 * How many truths of some rows were within their interval: {inside, n}. The truth of a row is an input `horizon` rows
 * later, if the rows between them are all there.
 */
export function coverageOf({ low, high, horizon, truth }, rows) {
  let [inside, n] = [0, 0];
  rows.forEach((row, i) => {
    const later = rows[i + horizon];
    if (row.step === null || later?.step !== row.step + horizon) return;
    const came = later.inputs[truth.input] ?? [];
    const values = truth.place === null ? came : [came[truth.place]];
    const [lows, highs] = [row.outputs[low] ?? [], row.outputs[high] ?? []];
    values.forEach((value, k) => {
      if (![value, lows[k], highs[k]].every(Number.isFinite)) return;
      n += 1;
      inside += Number(value >= lows[k] && value <= highs[k]);
    });
  });
  return { inside, n };
}

/** The coverage of all intervals in words; empty without any. */
export function coverageNote(model, rows) {
  return intervalsOf(model)
    .map((interval) => [interval, coverageOf(interval, rows)])
    .filter(([, { n }]) => n)
    .map(([{ of }, { inside, n }]) => `interval of ${of}: ${((100 * inside) / n).toFixed(1)}% of ${n} truths inside`)
    .join(" · ");
}

/** The weights of readouts among a stream's states: [{name, values}] with one value for each feature. */
export function weightsOf(states) {
  return Object.entries(states ?? {}).flatMap(([name, tensor]) =>
    /^Readout.*\.w$/.test(name) ? tensor.map((values, k) => ({ name: tensor.length > 1 ? `${name}[${k}]` : name, values })) : [],
  );
}

/** The names of the features of a readout, by the model's description; numbers if the features are not answered. */
export function featureNames(model, count) {
  const [readout] = valuesOf(model, "Readout", "y");
  const features = model.outputs.find(({ name }) => name === readout?.stage.of);
  const names = features ? elementNames(features) : [];
  return names.length === count ? names : Array.from({ length: count }, (_, i) => `weight ${i}`);
}
