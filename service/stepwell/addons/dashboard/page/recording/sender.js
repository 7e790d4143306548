// Sends the rows of a recording to their streams, each timestep once: all at once in chunks, or at a pace.

import { modelOf } from "../service.js";
import { inputsOf } from "./csv_table.js";

const CHUNK = 64; // timesteps of one request
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/**
 * Send all rows; returns {sent, step, isStopped}, the step of the last row's stream. Throws an Error with `sent`, the rows
 * that were applied before.
 *
 * @param {object} model - as `GET /v1/models/{model}` describes it
 * @param {string[]} names - the stream's id of each row
 * @param {{table: object, columns: object}} recording - as `parseCsv` and `columnsOf` return them
 * @param {{existing: "refuse" | "continue" | "reset", perSecond: number, maxChunk: number}} options - what to do if a
 *   stream exists; rows per second, 0: as fast as possible
 * @param {{progress: Function, isStopped: Function}} on - `progress` gets the number of rows that were applied
 */
export async function sendRows(model, names, { table, columns }, { existing, perSecond, maxChunk = CHUNK }, on) {
  const rows = table.rows.map((_, i) => inputsOf(model.inputs, columns, table, i)); // a bad cell is found before anything is sent
  const client = modelOf(model.name);
  const streams = streamsOf(client, names);
  const begun = new Set();
  let [sent, step] = [0, 0];
  try {
    const startedAt = performance.now();
    for (const indexes of perSecond ? names.map((_, i) => [i]) : chunksOf(names, Math.min(CHUNK, maxChunk))) {
      if (on.isStopped()) break;
      const stream = streams.get(names[indexes[0]]);
      const isFirst = !begun.has(stream);
      if (isFirst && existing === "reset") await stream.reset();
      if (isFirst) await stream.resume();
      begun.add(stream);
      if (perSecond) await sleep(startedAt + (1000 * sent) / perSecond - performance.now());
      const inputs = Object.fromEntries(model.inputs.map(({ name }) => [name, indexes.map((i) => rows[i][name])]));
      const isNew = existing === "refuse" && isFirst;
      ({ step } = await stream.steps(inputs, { return: "last", ...(isNew && { create: "must" }) }));
      sent += indexes.length;
      on.progress(sent);
    }
    return { sent, step, isStopped: sent < rows.length };
  } catch (problem) {
    throw Object.assign(problem, { sent });
  }
}

/** The handle of each stream by its id; throws an Error that names the first row (from 1) whose id is none. */
function streamsOf(client, names) {
  const streams = new Map();
  names.forEach((name, i) => {
    try {
      if (!streams.has(name)) streams.set(name, client.stream(name));
    } catch (problem) {
      throw new Error(`Row ${i + 1}: ${problem.message}`);
    }
  });
  return streams;
}

/** The rows of each stream in turn, some at a time. */
function chunksOf(names, size) {
  const rows = new Map();
  names.forEach((name, i) => rows.get(name)?.push(i) ?? rows.set(name, [i]));
  return [...rows.values()].flatMap((one) => Array.from({ length: Math.ceil(one.length / size) }, (_, n) => one.slice(n * size, (n + 1) * size)));
}
