// Run the cases of clients/conformance.json with this client:
//     node conformance.mjs http://127.0.0.1:8000 ../conformance.json [@msgpack/msgpack] [--feed]
// Prints a JSON line per case, with an empty `error` if it passed; exits with 1 if one failed. With --feed the single steps
// of handles go over a feed. With --under-faults SECONDS all cases are run again and again, four at once, against a service
// that fails: requests carry what identifies them, and what a repetition changes in an answer is not compared.
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { Client, StepwellError } from "@stepwell/client";

const AT_ONCE = 4;
const OF_ONE_ATTEMPT = ["replayed", "created"]; // a replay has the one and lacks the other
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { feed: { type: "boolean" }, "under-faults": { type: "string" } },
});
const [url, file, library] = positionals;
const kit = JSON.parse(await readFile(file, "utf8"));
const modelPath = `/v1/models/${kit.model}`;
const run = Math.random().toString(36).slice(2, 10);
const seconds = Number(options["under-faults"] ?? 0);
const feeds = new Map(); // by model object
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
  // An answer over a WebSocket is lost with its connection.
  WebSocket: class extends WebSocket {
    set onmessage(listener) {
      super.onmessage = (message) => {
        if (!answersToLose) return listener(message);
        answersToLose -= 1;
        this.close();
      };
    }
  },
});

async function runCase(section, { name, do: actions }) {
  let error = "";
  try {
    await (section === "http" ? runRequests : runCalls)(actions, `${run}-${++count}`);
  } catch (problem) {
    error = String(problem.message ?? problem);
    process.exitCode = 1;
  }
  console.log(JSON.stringify({ section, name, error }));
}

const cases = ["http", "client"]
  .flatMap((section) => kit[section].map((one) => [section, one]))
  .filter(([, one]) => !seconds || !one.not_under_faults);
const end = performance.now() + 1000 * seconds;
let next = 0;
async function runSome() {
  while (seconds ? performance.now() < end : next < cases.length) await runCase(...cases[next++ % cases.length]);
}
await Promise.all(Array.from({ length: seconds ? AT_ONCE : 1 }, runSome));
client.close();

async function runRequests(actions, prefix) {
  const saved = {};
  for (const action of actions) {
    const [method, path] = fill(action.send, prefix).split(" ");
    const body = fill(action.body, prefix, saved);
    let key = action.key?.replace("{a}", `${prefix}-a`);
    if (seconds && key === undefined && method !== "GET" && body?.seq === undefined && body?.after === undefined) {
      key = crypto.randomUUID();
    }
    const found = await outcome(() => requestRows({ method, path, body, key }));
    check(action, found, prefix, saved);
    if (action.as) saved[action.as] = found;
  }
}

/** Send a request, and send it again while a row of its answer has a transient error. */
async function requestRows(request) {
  for (;;) {
    const answer = await client.request(request);
    if (!Object.values(answer?.errors ?? {}).some(({ retry }) => retry === "same")) return answer;
  }
}

async function runCalls(actions, prefix) {
  const models = { a: client.model(kit.model), other: client.model(kit.model) };
  try {
    await runActions(actions, prefix, models);
  } finally {
    for (const model of Object.values(models)) {
      feeds.get(model)?.close();
      feeds.delete(model);
    }
  }
}

async function runActions(actions, prefix, models) {
  const saved = {};
  for (const action of actions) {
    const model = models[action.handle ?? "a"];
    const stream = model.stream(fill(action.stream ?? "{id:a}", prefix));
    if (action.lose_answer && !seconds) answersToLose = 1;
    const found = await outcome(() => call(model, stream, fill(action, prefix, saved)));
    if (answersToLose) throw new Error("no answer was lost");
    check(action, found, prefix, saved);
    if (action.as) saved[action.as] = found;
  }
}

async function call(model, stream, action) {
  switch (action.call) {
    case "step":
      return options.feed ? feedOf(model).step(stream.id, action.inputs) : stream.step(action.inputs);
    case "steps":
    case "peek":
      return stream[action.call](action.inputs);
    case "rollout":
      return stream.rollout(action.horizon, { commit: action.commit });
    case "rollout_timesteps": {
      const timesteps = [];
      for await (const one of stream.rolloutTimesteps(action.horizon, { commit: action.commit })) timesteps.push(one);
      return timesteps;
    }
    case "step_many":
      return model.stepMany(action.inputs);
    case "run":
      return model.run(action.inputs, action.state);
    case "run_many":
      return model.runMany(action.inputs, action.states);
    case "packed_state":
      return stream.packedState();
    case "put_state":
      return stream.putState({ state: action.state, step: action.step });
    case "fork":
      return stream.fork(action.to);
    case "feed":
      return Promise.all(action.steps.map(([id, inputs]) => feedOf(model).step(id, inputs)));
    default:
      return stream[action.call]();
  }
}

/** One feed for each model object of a case. */
function feedOf(model) {
  if (!feeds.has(model)) feeds.set(model, model.feed());
  return feeds.get(model);
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
  const expected = fill(action.error ?? action.expect, prefix, saved);
  const differs = differences(seconds ? afterRepetitions(expected, found) : expected, found);
  if (found instanceof StepwellError !== "error" in action) differs.push(found.message ?? "there was no error");
  const absent = (action.absent ?? []).filter((name) => !seconds || !OF_ONE_ATTEMPT.includes(name));
  for (const name of absent) if (name in found) differs.push(`${name} is there`);
  if (differs.length) throw new Error(`${JSON.stringify(action)}: ${differs.join("; ")}`);
}

/** Return what is expected of a request that may have been sent several times. */
function afterRepetitions(expected, found) {
  if (expected === null || typeof expected !== "object" || found === null || typeof found !== "object") return expected;
  if (Array.isArray(expected)) return expected.map((one, i) => afterRepetitions(one, found[i]));
  const members = Object.entries(expected).filter(([name]) => !OF_ONE_ATTEMPT.includes(name));
  return Object.fromEntries(
    members.map(([name, one]) => {
      // an earlier attempt without an answer may have been applied
      const isInDoubt = name === "applied" && one === "no" && found.applied === "unknown";
      return [name, isInDoubt ? "unknown" : afterRepetitions(one, found[name])];
    }),
  );
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
