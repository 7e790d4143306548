// Where the chosen stream stands, as the service keeps it: the norms of its states, and its last prediction.

import { getJson, pathOf } from "./feed.js";
import { bytes, flat, number, seriesOf, timesteps } from "./shapes.js";

const MOST_BYTES = 2 ** 20; // a larger state is not fetched for its norm
const MOST_NUMBERS = 8; // of one output, in words

/** The Euclidean norm of a tensor. */
export const norm = (tensor) => Math.sqrt(flat(tensor).reduce((sum, v) => sum + v * v, 0));

/** An output's numbers in a few words, by the names of its elements. */
export function inWords(spec, values) {
  if (values.length === 1) return number(values[0]);
  const { series } = seriesOf([spec]);
  const named = series.slice(0, MOST_NUMBERS).map(({ name, index }) => `${name} ${number(values[index])}`);
  return named.join("   ") + (values.length > named.length ? ` … (${number(values.length)})` : "");
}

/** The facts below the charts. */
export class Standing {
  #asked = "";

  /** @param {{list: HTMLElement, note: HTMLElement}} parts */
  constructor(parts) {
    Object.assign(this, parts);
  }

  /** Show nothing, and ask anew. */
  forget() {
    this.#asked = "";
    this.list.replaceChildren();
    this.note.textContent = "";
  }

  /** Ask where a stream stands, unless it has not moved since; answers whether the stream was told something. */
  async renew(model, stream) {
    const question = JSON.stringify([model.name, stream.name, stream.step]);
    if (question === this.#asked) return false;
    this.#asked = question;
    const isSmall = !(model.bytes_per_stream > MOST_BYTES);
    try {
      const [status, state] = await Promise.all([
        getJson(`${pathOf(model.name, stream.name)}?outputs=true`),
        isSmall ? getJson(pathOf(model.name, stream.name, "state")) : null,
      ]);
      if (this.#asked !== question) return false; // another was chosen meanwhile
      const [last = null] = timesteps(status.outputs ?? {}, model.outputs);
      this.#show(model, state, last);
      const size = bytes(model.bytes_per_stream);
      this.note.textContent = state ? `at step ${number(state.step)}` : `${size} of state are not read here`;
      if (stream.isLive && stream.step !== status.step) return false; // what comes over the feed is newer
      stream.stand(status.step, last);
      return true;
    } catch (problem) {
      if (this.#asked !== question) return false;
      this.forget();
      this.note.textContent = problem.message;
      return false;
    }
  }

  #show(model, state, last) {
    const norms = Object.entries(state?.states ?? {}).map(([name, tensor]) => [`‖${name}‖`, number(norm(tensor))]);
    const answered = model.outputs.filter(({ name }) => last?.[name]);
    const outputs = answered.map((spec) => [spec.name, inWords(spec, last[spec.name])]);
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
