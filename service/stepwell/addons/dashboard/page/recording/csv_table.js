// The rows of a CSV file, and the columns of it that make the inputs of a model; found by name, never by position.

import { elementNames, size } from "../shapes.js";

const SEPARATORS = [",", ";", "\t", "|"];
const SHOWN = 12; // names in a message

/** Read a CSV file with a header: {header, rows}, cells as they stand; throws an Error if that is not possible. */
export function parseCsv(text) {
  const source = text.replace(/^\uFEFF/, "");
  const headLine = source.slice(0, source.search(/\r?\n|$/));
  const counts = SEPARATORS.map((separator) => headLine.split(separator).length);
  const separator = SEPARATORS[counts.indexOf(Math.max(...counts))];
  const rows = [];
  let [row, cell, isQuoted] = [[], "", false];
  const endRow = () => {
    row.push(cell);
    if (row.length > 1 || row[0].trim() !== "") rows.push(row);
    [row, cell] = [[], ""];
  };
  for (let i = 0; i < source.length; i += 1) {
    const character = source[i];
    if (isQuoted) {
      if (character !== '"') cell += character;
      else if (source[i + 1] === '"') (cell += '"'), (i += 1);
      else isQuoted = false;
    } else if (character === '"' && cell === "") isQuoted = true;
    else if (character === separator) row.push(cell), (cell = "");
    else if (character === "\n") endRow();
    else if (character !== "\r") cell += character;
  }
  if (isQuoted) throw new Error("The file ends inside a quoted cell. Close the quotes.");
  if (cell !== "" || row.length) endRow();
  const [first, ...data] = rows;
  const header = first?.map((name) => name.trim());
  if (!header) throw new Error("The file is empty. It needs a header and a row for each timestep.");
  if (!data.length) throw new Error("The file has a header and no rows. It needs a row for each timestep.");
  const short = data.findIndex(({ length }) => length !== header.length);
  if (short >= 0) throw new Error(`Row ${short + 1} has ${data[short].length} cells; the header has ${header.length}.`);
  return { header, rows: data };
}

/**
 * The columns of each input: {input: [index, ..]}, in the order of its numbers. Those are its labels, if the model has
 * any; or the name of an input that is one number; or `NAME[0]`, `NAME[1]` and so on. Throws an Error if one is missing.
 */
export function columnsOf(inputs, header) {
  return Object.fromEntries(inputs.map((spec) => [spec.name, columnsOfInput(spec, header)]));
}

function columnsOfInput(spec, header) {
  const n = size(spec.shape);
  const indexed = Array.from({ length: n }, (_, i) => `${spec.name}[${i}]`);
  const candidates = [Array.isArray(spec.labels) ? elementNames(spec) : [], n === 1 ? [spec.name] : [], indexed].filter(({ length }) => length);
  const found = candidates.find((names) => names.every((name) => header.includes(name)));
  if (found) return found.map((name) => header.indexOf(name));
  throw new Error(`Input ${spec.name} is made of the columns ${some(candidates[0])}; the file has ${some(header)}. Rename the columns: their order is not used.`);
}

/** The columns that no input is made of, and the one of them that names the stream of each row, if its name says so. */
export function idColumns(columns, header) {
  const used = new Set(Object.values(columns).flat());
  const others = header.map((_, i) => i).filter((i) => !used.has(i));
  return { others, ids: others.find((i) => /^(stream|machine|device|sensor|unit|patient|station)?[ _-]?(id)?$/i.test(header[i]) && header[i]) };
}

/** The inputs of one row, as a request has them; throws an Error that names the row (from 1) and the column. */
export function inputsOf(specs, columns, { header, rows }, index) {
  return Object.fromEntries(
    specs.map((spec) => {
      const values = columns[spec.name].map((column) => {
        const value = valueOf(rows[index][column].trim(), spec);
        if (value !== undefined) return value;
        throw new Error(`Row ${index + 1}, column ${header[column]}: “${rows[index][column]}” is not ${WANTED[kindOf(spec)]}.`);
      });
      return [spec.name, shaped(values, spec.shape)];
    }),
  );
}

const WANTED = { float: "a number", int: "a whole number", bool: "true or false", other: "a value that this page can send" };
const DECIMAL = /^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i; // JSON's grammar, as in the other commands
const BOOLEANS = { true: true, 1: true, false: false, 0: false };

function kindOf({ dtype }) {
  if (dtype === "bool") return "bool";
  return dtype.includes("float") ? "float" : dtype.includes("int") ? "int" : "other";
}

/** The value of a cell; undefined if it has none of this type. An empty cell is missing: null, where a model accepts that. */
function valueOf(cell, spec) {
  const kind = kindOf(spec);
  if (kind === "bool") return BOOLEANS[cell.toLowerCase()];
  if (cell === "" || /^nan$/i.test(cell)) return spec.missing === "nan" ? null : undefined;
  const value = numberOf(cell);
  const isRight = kind === "float" ? Number.isFinite(value) : kind === "int" && Number.isSafeInteger(value);
  return isRight ? value : undefined;
}

/** The number of a cell; NaN if JSON has it not as a number. */
export function numberOf(cell) {
  return DECIMAL.test(cell.trim()) ? Number(cell) : NaN;
}

/** Values in row order as nested arrays of a shape. */
function shaped(values, [n, ...rest]) {
  if (n === undefined) return values[0];
  if (!rest.length) return values;
  const each = values.length / n;
  return Array.from({ length: n }, (_, i) => shaped(values.slice(i * each, (i + 1) * each), rest));
}

const some = (names) => names.slice(0, SHOWN).join(", ") + (names.length > SHOWN ? ` and ${names.length - SHOWN} more` : "");
