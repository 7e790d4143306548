// What really came after each prediction: the inputs of the next timestep, by the model's feedback rule, or a file's rows.

import { numberOf, parseCsv } from "../recording/csv_table.js";
import { areProbabilities, elementNames, size } from "../shapes.js";

const DRAWN = ["sample", "temperature", "top_k", "top_p", "one_hot"]; // of a rule that draws from probabilities

/** How outputs return as inputs: [{input, output, horizon, isDrawn, scale, offset}]; rules on logits are left out. */
export function pairsOf({ inputs, outputs, feedback }) {
  return Object.entries(feedback ?? {}).flatMap(([name, rule]) => {
    const { output: from, horizon, logits, scale = 1, offset = 0, ...rest } = typeof rule === "string" ? { output: rule } : rule;
    const [input, output] = [inputs.find((one) => one.name === name), outputs.find((one) => one.name === from)];
    if (!input || !output || logits) return [];
    const isDrawn = !horizon && (DRAWN.some((key) => key in rest) || (input.dtype.includes("int") && size(output.shape) > 1));
    return [{ input, output, horizon: horizon ?? 1, isDrawn, scale: [scale].flat(), offset: [offset].flat() }];
  });
}

/** What an input shows of the prediction before it: one number for each element of the output. */
export function fedBack({ input, output, isDrawn, scale, offset }, values) {
  const n = size(output.shape);
  if (isDrawn) return size(input.shape) === n ? values : Array.from({ length: n }, (_, i) => Number(i === values[0]));
  return values.map((value, i) => (value - (offset[i] ?? offset[0])) / (scale[i] ?? scale[0]));
}

/**
 * The rows of a file as {step: {output: values}}. Columns have the names of an output's numbers (labels, its name if it is
 * one number, or `NAME[0]`, ..), or an output's name with the label of the class; a column `step` has the step, else the
 * first row is that of step 1. Throws an Error if no column is one of these.
 */
export function truthOf(outputs, { header, rows }) {
  const readers = outputs.flatMap((spec) => readerOf(spec, header));
  if (!readers.length) {
    const wanted = outputs.flatMap((spec) => [spec.name, ...elementNames(spec)]).slice(0, 12);
    throw new Error(`No column has the name of a prediction: ${[...new Set(wanted)].join(", ")}; the file has ${header.slice(0, 12).join(", ")}.`);
  }
  const at = header.indexOf("step");
  const found = new Map();
  rows.forEach((row, i) => {
    const step = at < 0 ? i + 1 : numberOf(row[at]);
    if (!Number.isInteger(step)) throw new Error(`Row ${i + 1}, column step: “${row[at]}” is not a whole number.`);
    found.set(step, Object.fromEntries(readers.map(({ name, read }) => [name, read(row, i)])));
  });
  return found;
}

function readerOf(spec, header) {
  const n = size(spec.shape);
  const indexed = Array.from({ length: n }, (_, i) => `${spec.name}[${i}]`);
  const names = [elementNames(spec), indexed].find((one) => one.every((name) => header.includes(name)));
  if (names) {
    const columns = names.map((name) => header.indexOf(name));
    return [{ name: spec.name, read: (row) => columns.map((column) => numberOf(row[column])) }];
  }
  const column = header.indexOf(spec.name);
  if (column < 0 || n < 2) return [];
  const labels = elementNames(spec);
  const read = (row, i) => {
    const index = labels.indexOf(row[column]);
    if (index < 0 && row[column] !== "") throw new Error(`Row ${i + 1}, column ${spec.name}: “${row[column]}” is none of ${labels.slice(0, 12).join(", ")}.`);
    return labels.map((_, k) => (index < 0 ? NaN : Number(k === index)));
  };
  return [{ name: spec.name, read }];
}

/**
 * How far a prediction is from what came: the mean absolute difference of its numbers; for probabilities 1 minus that of
 * the class that came. Null without both.
 */
export function errorOf(outputs, truth) {
  const errors = Object.entries(truth ?? {}).flatMap(([name, came]) => {
    const predicted = outputs[name];
    if (!predicted) return [];
    if (areProbabilities(predicted) && came.includes(1)) return [1 - predicted[came.indexOf(1)]];
    return came.flatMap((value, i) => (Number.isFinite(value - predicted[i]) ? [Math.abs(value - predicted[i])] : []));
  });
  return errors.length ? errors.reduce((sum, error) => sum + error, 0) / errors.length : null;
}

export class Truth {
  #pairs = [];
  #files = new Map(); // stream -> {name, steps}

  setModel(model) {
    this.model = model;
    this.#pairs = pairsOf(model);
    this.#files = new Map(); // a file that is still read belongs to the model before
  }

  /** Read a file with what came to a stream; returns the number of its rows. Throws an Error with the reason. */
  async read(stream, file) {
    const { model } = this;
    const files = this.#files;
    const steps = truthOf(model.outputs, parseCsv(await file.text()));
    files.set(stream, { name: file.name, steps });
    return steps.size;
  }

  /** Where the ground truth of a stream is from, in words; empty without any. */
  sourceOf(stream) {
    if (this.#files.has(stream)) return this.#files.get(stream).name;
    return this.#pairs.length ? "the next timestep" : "";
  }

  /** For each row of a stream what its prediction should have been: {output: values}, or null; NaN has not come yet. */
  of(stream, rows) {
    const file = this.#files.get(stream);
    if (file) return rows.map(({ step }) => file.steps.get(step) ?? null);
    return rows.map(({ step }, i) => {
      if (step === null) return null;
      const came = this.#pairs.flatMap((pair) => {
        const values = Array.from({ length: pair.horizon }, (_, h) => {
          const later = rows[i + 1 + h];
          return later?.step === step + 1 + h ? later.inputs[pair.input.name] : undefined;
        });
        if (!values.some(Boolean)) return [];
        const unknown = Array(size(pair.output.shape) / pair.horizon).fill(NaN);
        return [[pair.output.name, values.flatMap((shown) => (shown ? fedBack(pair, shown) : unknown))]];
      });
      return came.length ? Object.fromEntries(came) : null;
    });
  }
}
