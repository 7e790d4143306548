// Events of the watch, recorded in the streams that they are of; an event without a stream only has a gap.

import { timesteps } from "../shapes.js";

/** Record an event for the list; returns its number of timesteps. */
export function recordCommit({ model, streams }, { stream, step, outputs }) {
  return stream ? streams.get(stream).recordCommit(step, timesteps(outputs ?? {}, model.outputs)) : 0;
}

/** Keep an event's timesteps for the charts. */
export function addRows({ model, streams }, { stream, step, outputs, inputs, candidate }) {
  if (!stream) return;
  const given = timesteps(inputs ?? {}, model.inputs);
  const [answered, tried] = [outputs, candidate?.outputs].map((one) => timesteps(one ?? {}, model.outputs));
  streams.get(stream).addRows(step, given, answered, tried);
}
