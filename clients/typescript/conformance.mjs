// Run the cases of clients/conformance.json with this client:
//     node conformance.mjs http://127.0.0.1:8000 ../conformance.json [@msgpack/msgpack]
// Prints a JSON line per case, with an empty `error` if it passed; exits with 1 if one failed.
import { readFile } from "node:fs/promises";
import { Client, StepwellError } from "./src/index.js";

const [url, file, library] = process.argv.slice(2);
const kit = JSON.parse(await readFile(file, "utf8"));
const modelPath = `/v1/models/${kit.model}`;
const run = Math.random().toString(36).slice(2, 10);
let count = 0;
let answersToLose = 0;

const client = new Client(url, {
  msgpack: library && (await import(library)),
  async fetch(address, init) {
    const response = await fetch(address, init);
    await response.clone().arrayBuffer(); // the service has answered
    if (answersToLose && init.method === "POST") {
      answersToLose -= 1;
      throw new TypeError("the answer was lost");
    }
    return response;
  },
});

for (const section of ["http", "client"]) {
  for (const { name, do: actions } of kit[section]) {
    let error = "";
    try {
      await (section === "http" ? runRequests : runCalls)(actions, `${run}-${++count}`);
    } catch (problem) {
      error = String(problem.message ?? problem);
      process.exitCode = 1;
    }
    console.log(JSON.stringify({ section, name, error }));
  }
}
client.close();

async function runRequests(actions, prefix) {
  const saved = {};
  for (const action of actions) {
    const [method, path] = fill(action.send, prefix).split(" ");
    const key = action.key?.replace("{a}", `${prefix}-a`);
    const found = await outcome(() => client.request({ method, path, body: fill(action.body, prefix, saved), key }));
    check(action, found, prefix, saved);
    if (action.as) saved[action.as] = found;
  }
}

async function runCalls(actions, prefix) {
  const models = { a: client.model(kit.model), other: client.model(kit.model) };
  for (const action of actions) {
    const model = models[action.handle ?? "a"];
    const stream = model.stream(fill(action.stream ?? "{id:a}", prefix));
    if (action.lose_answer) answersToLose = 1;
    const found = await outcome(() => call(model, stream, fill(action, prefix)));
    if (answersToLose) throw new Error("no answer was lost");
    check(action, found, prefix, {});
  }
}

function call(model, stream, action) {
  switch (action.call) {
    case "step":
    case "steps":
    case "peek":
      return stream[action.call](action.inputs);
    case "rollout":
      return stream.rollout(action.horizon, { commit: action.commit });
    case "step_many":
      return model.stepMany(action.inputs);
    case "fork":
      return stream.fork(action.to);
    case "feed":
      return runFeed(model, action.steps);
    default:
      return stream[action.call]();
  }
}

async function runFeed(model, steps) {
  const feed = model.feed();
  try {
    return await Promise.all(steps.map(([stream, inputs]) => feed.step(stream, inputs)));
  } finally {
    feed.close();
  }
}

async function outcome(act) {
  try {
    return (await act()) ?? {};
  } catch (error) {
    if (error instanceof StepwellError) return error;
    throw error;
  }
}

/** Put names of streams, saved responses and special numbers into a value of the file. */
function fill(value, prefix, saved = {}) {
  if (Array.isArray(value)) return value.map((member) => fill(member, prefix, saved));
  if (value !== null && typeof value === "object") {
    if (Object.keys(value).join() === "number") return Number(value.number);
    return Object.fromEntries(
      Object.entries(value).map(([name, member]) => [fill(name, prefix), fill(member, prefix, saved)]),
    );
  }
  if (typeof value !== "string") return value;
  if (value.startsWith("$")) return value.slice(1).split(".").reduce((found, name) => found[name], saved);
  return value
    .replace(/\{id:(a|b)\}/g, `${prefix}-$1`)
    .replace(/\{(a|b)\}/g, `${modelPath}/streams/${prefix}-$1`)
    .replace("{model}", modelPath);
}

function check(action, found, prefix, saved) {
  const differs = differences(fill(action.error ?? action.expect, prefix, saved), found);
  if (found instanceof StepwellError !== "error" in action) differs.push(found.message ?? "there was no error");
  for (const name of action.absent ?? []) if (name in found) differs.push(`${name} is there`);
  if (differs.length) throw new Error(`${JSON.stringify(action)}: ${differs.join("; ")}`);
}

/** Return how a value differs from the expected one; members of objects that are not expected are ignored. */
function differences(expected, found, where = "it") {
  if (expected === undefined || Object.is(expected, found)) return [];
  if (expected === null || typeof expected !== "object" || found === null || typeof found !== "object") {
    return [`${where} is ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`];
  }
  if (Array.isArray(expected) && expected.length !== found.length) return [`${where} has ${found.length} members`];
  const at = (name) => (Array.isArray(expected) ? `${where}[${name}]` : `${where}.${name}`);
  return Object.entries(expected).flatMap(([name, member]) => differences(member, found[name], at(name)));
}
