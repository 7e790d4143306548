// The chosen stream's stored status: the norms of its states and its last prediction.

import { weightsOf } from "../charts/stages.js";
import { getJson, pathOf } from "../service.js";
import { bytes, clock, flat, number, seriesOf, timesteps } from "../shapes.js";

const MAX_BYTES = 2 ** 20; // larger states are not fetched
const BYTES_PER_MS = 32; // so large states of a live stream are read more rarely
const READ_MS = 20_000; // the charts of a stream without events begin with what is read here
const MAX_NUMBERS = 8; // shown of one output

/** The Euclidean norm of a tensor. */
export const norm = (tensor) => Math.sqrt(flat(tensor).reduce((sum, v) => sum + v * v, 0));

/** An output's values as text, with the names of its elements. */
export function inWords(spec, values) {
  if (values.length === 1) return number(values[0]);
  const { series } = seriesOf([spec]);
  const named = series.slice(0, MAX_NUMBERS).map(({ name, index }) => `${name} ${number(values[index])}`);
  return named.join("   ") + (values.length > named.length ? ` … (${number(values.length)})` : "");
}

/** The values below the charts. */
export class StreamStatus {
  #requested = "";
  #next = 0; // when the state of a live stream is read again
  #stream = null; // what was read belongs to this object: the page may replace it by a new one of the same name

  /** @param {{list: HTMLElement, note: HTMLElement}} parts */
  constructor(parts) {
    Object.assign(this, parts);
  }

  /** Clear the values, so that `refresh` reads them again. */
  clear() {
    this.#requested = "";
    this.list.replaceChildren();
    this.note.textContent = "";
  }

  /** Read a stream's status, unless its step is unchanged; returns whether the stream was updated. */
  async refresh(model, stream) {
    const wanted = JSON.stringify([model.name, stream.name, stream.step]);
    const isEarly = stream.isLive && this.#requested !== "" && performance.now() < this.#next;
    if (stream === this.#stream && (wanted === this.#requested || isEarly)) return false;
    [this.#requested, this.#stream] = [wanted, stream];
    this.#next = performance.now() + model.bytes_per_stream / BYTES_PER_MS;
    const isSmall = !(model.bytes_per_stream > MAX_BYTES);
    try {
      const [status, state] = await Promise.all([
        getJson(`${pathOf(model.name, stream.name)}?outputs=true`, READ_MS),
        isSmall ? getJson(pathOf(model.name, stream.name, "state"), READ_MS) : null,
      ]);
      if (this.#requested !== wanted || this.#stream !== stream) return false; // another stream was chosen meanwhile
      if (state) stream.keepWeights(status.step, weightsOf(state.states));
      const [last = null] = timesteps(status.outputs ?? {}, model.outputs);
      this.#show(model, state, stream.isLive ? null : last); // the charts show the predictions of a live stream
      const size = bytes(model.bytes_per_stream);
      this.note.textContent = state ? `read at ${clock(Date.now())}` : `the state (${size}) is too large to show`;
      if (stream.isLive && stream.step !== status.step) return false; // the watch has newer data
      stream.setStored(status.step, last, Date.parse(status.updated_at));
      return true;
    } catch (problem) {
      if (this.#requested !== wanted) return false;
      this.clear();
      this.note.textContent = problem.message;
      return false;
    }
  }

  #show(model, state, last) {
    const norms = Object.entries(state?.states ?? {}).map(([name, tensor]) => [`norm of ${name}`, number(norm(tensor))]);
    const available = model.outputs.filter(({ name }) => last?.[name]);
    const outputs = available.map((spec) => [spec.name, inWords(spec, last[spec.name])]);
    const parts = [...norms, ...outputs].map(([name, value]) => {
      const [fact, term, words] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = name;
      words.textContent = value;
      fact.append(term, words);
      return fact;
    });
    this.list.replaceChildren(...parts);
  }
}
