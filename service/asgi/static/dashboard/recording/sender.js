// Sends the rows of a recording to a stream, each timestep once: all at once in chunks, or at a pace.

import { modelOf } from "../service.js";
import { inputsOf } from "./csv_table.js";

const CHUNK = 64; // timesteps of one request
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/**
 * Send all rows; returns {sent, step, isStopped}. Throws an Error with `sent`, the rows that were applied before.
 *
 * @param {object} model - as `GET /v1/models/{model}` describes it
 * @param {string} name - the stream's id
 * @param {{table: object, columns: object}} recording - as `parseCsv` and `columnsOf` return them
 * @param {{existing: "refuse" | "continue" | "reset", perSecond: number, maxChunk: number}} options - what to do if the
 *   stream exists; rows per second, 0: as fast as possible
 * @param {{progress: Function, isStopped: Function}} on - `progress` gets the number of rows that were applied
 */
export async function sendRows(model, name, { table, columns }, { existing, perSecond, maxChunk = CHUNK }, on) {
  const { length } = table.rows;
  const rows = table.rows.map((_, i) => inputsOf(model.inputs, columns, table, i)); // a bad cell is found before anything is sent
  let sent = 0;
  try {
    const stream = modelOf(model.name).stream(name);
    if (existing === "reset") await stream.reset();
    let step = await stream.resume();
    const startedAt = performance.now();
    while (sent < length && !on.isStopped()) {
      const size = perSecond ? 1 : Math.min(CHUNK, maxChunk, length - sent);
      if (perSecond) await sleep(startedAt + (1000 * sent) / perSecond - performance.now());
      const part = rows.slice(sent, sent + size);
      const inputs = Object.fromEntries(model.inputs.map(({ name }) => [name, part.map((row) => row[name])]));
      const isNew = existing === "refuse" && sent === 0;
      ({ step } = await stream.steps(inputs, { return: "last", ...(isNew && { create: "must" }) }));
      sent += size;
      on.progress(sent);
    }
    return { sent, step, isStopped: sent < length };
  } catch (problem) {
    throw Object.assign(problem, { sent });
  }
}
