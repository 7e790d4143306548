import { StepwellError, problemError } from "./errors.js";
import { Retries } from "./transport.js";

/** @import { Model, Stream } from "./client.js" */
/** @import { InputsByStream } from "./inputs.js" */
/** @import { Limits } from "./options.js" */
/** @import { Position, StepResults } from "./results.js" */
/** @import { BulkResponse, StepResponse } from "./api.js" */

/** @typedef {Position & { stream: Stream }} Row */

/** As `Model.stepMany`. @param {Model} model @param {InputsByStream} inputs @param {Limits} limits */
export async function bulkStep(model, inputs, limits) {
  /** @type {StepResults} */
  const results = {};
  const streams = Object.keys(inputs).flatMap((id) => {
    try {
      return [model.stream(id)];
    } catch (error) {
      results[id] = /** @type {StepwellError} */ (error);
      return [];
    }
  });
  let release = () => {};
  const released = new Promise((resolve) => (release = () => resolve(undefined)));
  // All streams are queued in this same turn of the event loop: two calls cannot wait for each other.
  const queued = streams.map(
    (stream) =>
      /** @type {Promise<Row>} */ (
        new Promise((resolve, reject) => {
          const hold = async () => (resolve({ ...(await stream.position(limits)), stream }), released);
          stream.exclusive(limits, hold).catch(reject);
        })
      ),
  );
  try {
    return { ...results, ...(await stepAll(model, await Promise.all(queued), inputs, limits)) };
  } finally {
    release();
  }
}

/** @param {Model} model @param {Row[]} rows @param {InputsByStream} inputs @param {Limits} limits */
async function stepAll(model, rows, inputs, limits) {
  const { transport } = model.client;
  /** @type {StepResults} */
  const results = {};
  // A request has one `create`, so new streams have their own.
  for (const isNew of [false, true]) {
    const retries = new Retries(limits.deadline);
    let waiting = rows.filter((row) => !row.state_id === isNew);
    while (waiting.length) {
      try {
        const response = await transport.send(bulkRequest(model, waiting, inputs), limits, undefined, retries);
        waiting.forEach(({ stream }, i) => (results[stream.id] = readRow(response, i)));
      } catch (error) {
        if (!(error instanceof StepwellError)) throw error;
        if (!Object.keys(results).length) {
          for (const { stream } of waiting) stream.inDoubt ||= error.applied !== "no";
          throw error;
        }
        waiting.forEach(({ stream }) => (results[stream.id] = error));
      }
      /** @type {StepwellError[]} */
      const errors = []; // of the streams that can be tried again
      waiting = waiting.filter(({ stream }) => {
        const result = results[stream.id];
        if (result instanceof StepwellError) {
          stream.inDoubt ||= retries.final(result).applied !== "no";
          return result.retry === "same" && errors.push(result);
        }
        stream.moveTo(result);
      });
      if (!waiting.length) break;
      try {
        await transport.wait(retries.pause(errors.find(({ applied }) => applied !== "no") ?? errors[0]), limits.signal);
      } catch {
        break; // the call is over: the errors stay the results
      }
    }
  }
  return results;
}

/** @param {Model} model @param {Row[]} rows @param {InputsByStream} inputs */
function bulkRequest(model, rows, inputs) {
  const streams = rows.map(({ stream }) => stream.id);
  const body = {
    streams,
    inputs: columns(streams, inputs),
    seq: rows.map(({ step }) => step + 1),
    ...(rows[0].state_id ? { after: rows.map((row) => row.state_id) } : { create: "must" }),
  };
  return { method: "POST", path: `${model.path}/step`, body };
}

/** @param {string[]} streams @param {any} inputs Of each stream, by name or as a bare tensor. */
function columns(streams, inputs) {
  const rows = streams.map((id) => inputs[id]);
  const names = rows.map(namesOf);
  const expected = names.find((one) => one.length);
  if (!expected) return rows;
  const differs = names.findIndex((one) => JSON.stringify(one) !== JSON.stringify(expected));
  if (differs >= 0) {
    throw new StepwellError(
      "bad_input",
      `Stream '${streams[differs]}' has the inputs [${names[differs]}]; expected [${expected}], as for the others.`,
    );
  }
  return Object.fromEntries(expected.map((name) => [name, rows.map((row) => row[name])]));
}

/** @param {any} row @returns {string[]} The names of a stream's inputs, sorted; none for a bare tensor. */
function namesOf(row) {
  return row !== null && typeof row === "object" && !Array.isArray(row) ? Object.keys(row).sort() : [];
}

/** @param {BulkResponse} response @param {number} row @returns {StepResponse | StepwellError} */
function readRow(response, row) {
  const problem = response?.errors?.[row];
  if (problem) return problemError(problem);
  const step = response?.step?.[row];
  const state_id = response?.state_id?.[row];
  if (step == null || state_id == null) {
    return new StepwellError("unreadable_answer", `The response has nothing for row ${row}.`, { applied: "unknown" });
  }
  const columns = Object.entries(response.outputs);
  const outputs = Object.fromEntries(columns.map(([name, column]) => [name, column[row]]));
  return { outputs, step, state_id, ...(response.replayed?.includes(row) && { replayed: true }) };
}
