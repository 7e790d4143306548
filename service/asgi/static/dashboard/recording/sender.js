// Sends the rows of a recording to a stream, each timestep once: all at once in chunks, or at a pace.

import { getJson, pathOf, send } from "../feed.js";
import { inputsOf } from "./csv_table.js";

const CHUNK = 64; // timesteps of one request
const ATTEMPTS = 5; // of one request whose outcome is not known; `seq` makes a second one harmless
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/**
 * Send all rows; returns {sent, step, isStopped}. Throws an Error with `sent`, the rows that were applied before.
 *
 * @param {object} model - as `GET /v1/models/{model}` describes it
 * @param {string} stream - the stream's id
 * @param {{table: object, columns: object}} recording - as `parseCsv` and `columnsOf` return them
 * @param {{existing: "refuse" | "continue" | "reset", perSecond: number, maxChunk: number}} options - what to do if the
 *   stream exists; rows per second, 0: as fast as possible
 * @param {{progress: Function, isStopped: Function}} on - `progress` gets the number of rows that were applied
 */
export async function sendRows(model, stream, { table, columns }, { existing, perSecond, maxChunk = CHUNK }, on) {
  const { length } = table.rows;
  const rows = table.rows.map((_, i) => inputsOf(model.inputs, columns, table, i)); // a bad cell is found before anything is sent
  let sent = 0;
  try {
    const first = await startOf(model.name, stream, existing);
    const startedAt = performance.now();
    let step = first - 1;
    while (sent < length && !on.isStopped()) {
      const size = perSecond ? 1 : Math.min(CHUNK, maxChunk, length - sent);
      if (perSecond) await sleep(startedAt + (1000 * sent) / perSecond - performance.now());
      const part = rows.slice(sent, sent + size);
      const inputs = Object.fromEntries(model.inputs.map(({ name }) => [name, part.map((row) => row[name])]));
      const isNew = existing === "refuse" && sent === 0;
      ({ step } = await sendPart(model.name, stream, { inputs, seq: first + sent, return: "last", ...(isNew && { create: "must" }) }));
      sent += size;
      on.progress(sent);
    }
    return { sent, step, isStopped: sent < length };
  } catch (problem) {
    throw Object.assign(problem, { sent });
  }
}

/** The number of the first timestep to send, after a reset if that was chosen. */
async function startOf(model, stream, existing) {
  if (existing === "refuse") return 1;
  if (existing === "reset") return 1 + (await send("POST", pathOf(model, stream, "reset"))).step;
  try {
    return 1 + (await getJson(pathOf(model, stream))).step;
  } catch (problem) {
    if (problem.status === 404) return 1;
    throw problem;
  }
}

async function sendPart(model, stream, body) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await send("POST", pathOf(model, stream, "steps"), body);
    } catch (problem) {
      const mayPass = !problem.status || problem.status === 503 || problem.status === 429;
      if (!mayPass || attempt === ATTEMPTS) throw problem;
      await sleep(250 * 2 ** attempt);
    }
  }
}
