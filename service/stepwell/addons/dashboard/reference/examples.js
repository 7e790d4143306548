// Examples that work as they are: paths and bodies with the name and the inputs of a loaded model.

const STREAM = "example";

const shaped = ([n, ...rest], value) => (n === undefined ? value : Array.from({ length: n }, () => shaped(rest, value)));

/** One timestep of zeros for a model's inputs, with leading axes of length 1 in front. */
function zeros(specs, axes) {
  return Object.fromEntries(specs.map(({ name, dtype, shape }) => [name, shaped([...axes, ...shape], dtype === "bool" ? false : 0)]));
}

/** Bodies by the end of their route; `axes` in front of a row: 1 for streams, 1 for time. */
const BODIES = [
  [/streams\/\{stream\}\/step$/, ({ inputs }) => ({ inputs: zeros(inputs, []) })],
  [/streams\/\{stream\}\/steps$/, ({ inputs }) => ({ inputs: zeros(inputs, [1]) })],
  [/streams\/\{stream\}\/peek$/, ({ inputs }) => ({ inputs: zeros(inputs, []) })],
  [/streams\/\{stream\}\/rollout$/, ({ inputs }) => ({ horizon: 10, inputs: zeros(inputs, []) })],
  [/streams\/\{stream\}\/state$/, ({ states }) => ({ states: zeros(states, []), step: 0 })],
  [/streams\/\{stream\}\/fork$/, () => ({ to: "example-fork" })],
  [/streams\/\{stream\}\/reset$/, () => ({})],
  [/v1\/models\/\{model\}\/step$/, ({ inputs }) => ({ streams: [STREAM], inputs: zeros(inputs, [1]) })],
  [/v1\/models\/\{model\}\/steps$/, ({ inputs }) => ({ streams: [STREAM], inputs: zeros(inputs, [1, 1]) })],
];

/** The value of a path's parameter; empty if there is no example of it. */
export function parameterOf(name, model) {
  return { model: model?.name, stream: STREAM, version: String(model?.version ?? 1), snapshot: "example", name: "example" }[name] ?? "";
}

/** The example body of a route; null if it has none of its own. */
export function bodyOf(path, model) {
  const found = model && BODIES.find(([route]) => route.test(path));
  return found ? found[1](model) : null;
}
