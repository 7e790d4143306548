// Run the section `local` of clients/conformance.json by a model file on onnxruntime, without a service:
//     node conformance-local.mjs ../conformance.json doubling.onnx onnxruntime-web
// Prints a JSON line per case, with an empty `error` if it passed; exits with 1 if one failed.
import { readFile } from "node:fs/promises";
import { LocalModel } from "@stepwell/client/local";
import { StepwellError } from "@stepwell/client";

const [file, modelFile, library] = process.argv.slice(2);
const kit = JSON.parse(await readFile(file, "utf8"));
const model = await LocalModel.load(await readFile(modelFile), { ort: await import(library) });

for (const { name, do: actions } of kit.local) {
  let error = "";
  try {
    await runCase(actions);
  } catch (problem) {
    error = String(problem.message ?? problem);
    process.exitCode = 1;
  }
  console.log(JSON.stringify({ section: "local", name, error }));
}

async function runCase(actions) {
  const streams = { a: model.stream(), b: model.stream() };
  const saved = {};
  for (const action of actions) {
    const found = await call(streams, fill(action, saved)).catch((error) => {
      if (error instanceof StepwellError) return error;
      throw error;
    });
    const differs = differences(action.error ?? action.expect, found);
    if (found instanceof StepwellError !== "error" in action) differs.push(found.message ?? "there was no error");
    if (differs.length) throw new Error(`${JSON.stringify(action)}: ${differs.join("; ")}`);
    if (action.as) saved[action.as] = found;
  }
}

async function call(streams, action) {
  const name = action.stream ?? "a";
  switch (action.call) {
    case "step":
      return streams[name].step(action.inputs);
    case "steps":
      return streams[name].steps(action.inputs, { return: action.return });
    case "fork":
      return (streams[action.to] = await streams[name].fork());
    case "from":
      return (streams[name] = model.stream({ state: action.state, step: action.step }));
    default:
      return streams[name][action.call]();
  }
}

/** Put saved results and special numbers into an action. */
function fill(value, saved) {
  if (Array.isArray(value)) return value.map((member) => fill(member, saved));
  if (value !== null && typeof value === "object") {
    if (Object.keys(value).join() === "number") return Number(value.number);
    return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, fill(member, saved)]));
  }
  if (typeof value !== "string" || !value.startsWith("$")) return value;
  return value.slice(1).split(".").reduce((found, name) => found[name], saved);
}

/** Return how a value differs from the expected one; members of objects that are not expected are ignored. */
function differences(expected, found, where = "it") {
  if (expected === undefined || Object.is(expected, found)) return [];
  if (expected === null || typeof expected !== "object" || found === null || typeof found !== "object") {
    return [`${where} is ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`];
  }
  if (Array.isArray(expected) && expected.length !== found.length) return [`${where} has ${found.length} members`];
  return Object.entries(expected).flatMap(([name, member]) => differences(member, found[name], `${where}.${name}`));
}
