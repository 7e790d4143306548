// Tensors for display: element names, flat values, probabilities, numbers as text.

const MAX_SERIES = 12; // more lines cannot be distinguished

export const size = (shape) => shape.reduce((product, dim) => product * dim, 1);

/** Names of the elements of one row of a tensor: the manifest's `labels` if it has them, else `name 0`, ... */
export function elementNames(spec) {
  const n = size(spec.shape);
  if (Array.isArray(spec.labels) && spec.labels.length === n) return spec.labels.map(String);
  return n === 1 ? [spec.name] : Array.from({ length: n }, (_, i) => `${spec.name} ${i}`);
}

/** The unit of an element: the manifest's `unit`, for the whole tensor or for each of its numbers. */
const unitOf = ({ unit }, index) => (Array.isArray(unit) ? unit[index] : unit) ?? "";

/** The series of some tensors: [{tensor, index, name, unit?}], at most `most`; `total` is the number without this limit. */
export function seriesOf(specs, most = MAX_SERIES) {
  const all = [];
  let total = 0;
  for (const spec of specs) {
    total += size(spec.shape);
    if (all.length >= most) continue;
    elementNames(spec).forEach((name, index) => {
      const unit = unitOf(spec, index);
      all.push({ tensor: spec.name, index, name, ...(unit && { unit }) });
    });
  }
  return { series: all.slice(0, most), total };
}

/** The values of a tensor in row order, as numbers; JSON null becomes NaN. */
export const flat = (tensor) => [tensor].flat(Infinity).map((v) => (v === null ? NaN : Number(v)));

/** The tensors of one message as timesteps: [{name: flat values}, ...]; those of a chunk have a leading time axis. */
export function timesteps(tensors, specs) {
  const rows = [];
  for (const spec of specs) {
    if (!(spec.name in tensors)) continue;
    const value = tensors[spec.name];
    const chunk = depth(value) > spec.shape.length;
    (chunk ? value : [value]).forEach((row, t) => {
      rows[t] ??= {};
      rows[t][spec.name] = flat(row);
    });
  }
  return rows;
}

/** A value of a line; null, where the line is interrupted, for what is not finite. */
export const finite = (value) => (Number.isFinite(value) ? value : null);

const depth = (value) => (Array.isArray(value) ? 1 + depth(value[0]) : 0);

/** Whether values are at least two probabilities with the sum 1. */
export function areProbabilities(values) {
  if (!values || values.length < 2 || values.some((v) => !(v >= 0 && v <= 1))) return false;
  return Math.abs(values.reduce((sum, v) => sum + v, 0) - 1) < 1e-3;
}

/** The most probable class of a row of outputs, {name, index, share}; null without probabilities. */
export function mostProbable(row, specs) {
  for (const spec of specs) {
    const values = row?.[spec.name];
    if (!areProbabilities(values)) continue;
    const best = values.indexOf(Math.max(...values));
    return { name: elementNames(spec)[best], index: best, share: values[best] };
  }
  return null;
}

/** A short text for a row of outputs. */
export function summary(row, specs) {
  if (!row) return "";
  const best = mostProbable(row, specs);
  if (best) return `${best.name} ${percent(best.share)}`;
  const values = specs.flatMap((spec) => row[spec.name] ?? []);
  return values.slice(0, 3).map(number).join("  ") + (values.length > 3 ? " …" : "");
}

/** A model's inputs, outputs, state and verification, in one line. */
export function modelFacts({ name, inputs, outputs, bytes_per_stream: size, parity }) {
  const tensor = ({ name, dtype, shape, unit }) => {
    const units = [unit ?? []].flat();
    return `${name} ${dtype}${shape.length ? ` [${shape.join(", ")}]` : ""}${units.length ? ` in ${units.join(", ")}` : ""}`;
  };
  return [
    `${name}: ${inputs.map(tensor).join(", ")} → ${outputs.map(tensor).join(", ")}`,
    size != null && `${bytes(size)} of state per stream`,
    parity && `equal to ${parity.against} within ${parity.max_abs.toExponential(1)} over ${parity.steps} steps`,
  ].filter(Boolean).join("   ·   ");
}

/** The shell command that sends one timestep of zeros to a model. */
export function curlLine(model, base, withKey) {
  const zeros = ({ dtype, shape }) => filled(shape, dtype === "bool" ? false : 0);
  const inputs = Object.fromEntries(model.inputs.map((spec) => [spec.name, zeros(spec)]));
  const url = new URL(`v1/models/${model.name}/streams/first/step`, base);
  const lines = [`curl ${url}`, "-H 'content-type: application/json'"];
  if (withKey) lines.push("-H 'authorization: Bearer YOUR_KEY'");
  return [...lines, `-d '${JSON.stringify({ inputs })}'`].join(" \\\n  ");
}

const filled = ([n, ...rest], value) =>
  n === undefined ? value : Array.from({ length: n }, () => filled(rest, value));

export const percent = (share) => `${(share * 100).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)}%`;

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 }); // `toLocaleString` makes one for each call
const TENTHS = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const [SMALL, LARGE, EXACT] = [0.001, 1e12, 1e5]; // sizes: below and from there on with an exponent; with tenths below

/** A number as text, shortened for display. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= LARGE || (size && size < SMALL)) return value.toExponential(1);
  if (Number.isInteger(value) || size >= EXACT) return WHOLE.format(value + 0); // not "-0"
  if (size >= 1000) return TENTHS.format(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

/** The texts at the tick marks of an axis, which differ although the marks are close together. */
export function tickTexts(values, distance) {
  const largest = Math.max(...values.map(Math.abs));
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(distance))); // one more than of a power of ten: 0.25
  const digits = 1 + Math.floor(Math.log10(largest / distance) + 0.01); // 0.01: of rounding
  const isShorter = (largest >= 1e6 || decimals > 6) && digits <= 4;
  if (isShorter) return values.map((value) => (value === 0 ? "0" : value.toExponential(digits)));
  const { format } = new Intl.NumberFormat("en", { maximumFractionDigits: Math.min(decimals, 20) });
  return values.map((value) => format(value));
}

/** A number with its noun, in the plural unless it is 1. */
export const counted = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

/** An age in seconds as text. */
export function ago(seconds) {
  if (seconds < 2) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** A number of bytes as text. */
export const bytes = (n) => (n < 10240 ? `${number(n)} bytes` : `${number(Math.round(n / 1024))} KiB`);

/** A time in milliseconds as the time of day. */
export const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
