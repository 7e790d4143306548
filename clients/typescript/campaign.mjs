// Make the calls of a campaign with this client:
//     node campaign.mjs http://127.0.0.1:8000 fold
// Reads calls as JSON lines, {"id", "method", "writer", "stream", "arguments"}, and makes them at once. Prints for each, as
// soon as it ends, {"id", "result"} or {"id", "error"}. Ends when its input does.
import { createInterface } from "node:readline";
import { Client, StepwellError } from "@stepwell/client";
import { parse, stringify } from "./src/formats.js";

const [url, modelName] = process.argv.slice(2);
const client = new Client(url);
const writers = new Map();

/** Each writer has a model object and a feed of its own. */
function writerOf(name) {
  if (!writers.has(name)) {
    const model = client.model(modelName);
    writers.set(name, { model, feed: model.feed() });
  }
  return writers.get(name);
}

function make({ method, writer, stream: id, arguments: given }) {
  const { model, feed } = writerOf(writer);
  switch (method) {
    case "request":
      return client.request(...given);
    case "stepMany":
      return model.stepMany(...given);
    case "feed":
      return feed.step(id, ...given);
    case "fork":
      return model.stream(id).fork(...given).then(() => ({}));
    default:
      return model.stream(id)[method](...given);
  }
}

/** Return what the campaign reads of an error, also where it is one stream's result of `stepMany`. */
function plainError({ code, message, applied, retry, status, step, expected }) {
  return { code, detail: message, applied, retry, status, step, expected };
}

async function outcome(call) {
  try {
    const result = (await make(call)) ?? {};
    if (call.method !== "stepMany") return { result };
    const rows = Object.entries(result).map(([id, row]) => [
      id,
      row instanceof StepwellError ? { error: plainError(row) } : { result: row },
    ]);
    return { result: Object.fromEntries(rows) };
  } catch (error) {
    if (!(error instanceof StepwellError)) throw error; // a fault of the client: the process ends with it
    return { error: plainError(error) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const call = parse(line);
  outcome(call).then((found) => console.log(stringify({ id: call.id, ...found })));
}
client.close();
process.exit();
