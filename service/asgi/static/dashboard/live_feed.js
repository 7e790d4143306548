// The committed predictions of a model as they arrive: one watch of all streams, and one of the chosen stream if there are many.

import { Watch } from "./feed.js";

const MAX_WITH_INPUTS = 100; // with more live streams, inputs are received for the chosen stream only

export class LiveFeed {
  #all = null; // the watch of the whole model
  #one = null; // the watch of the chosen stream, if `#isCrowded`
  #isCrowded = false;
  #model = "";
  #chosen = null;

  /**
   * @param {{hasCandidate: Function, open: Function, lost: Function, refused: Function, commit: Function, rows: Function}} on -
   *   `commit` gets every message; `rows` those with inputs; `lost` gets the seconds until the next attempt
   */
  constructor(on) {
    this.on = on;
  }

  /** Whether messages arrive. */
  get isOpen() {
    return this.#all?.isOpen ?? false;
  }

  /** Watch a model. */
  open(model) {
    this.#model = model;
    this.#watch();
  }

  close() {
    this.#all?.close();
    this.#one?.close();
    this.#all = this.#one = null;
  }

  /** Watch again, if a model is watched, with what a trial of a release needs. */
  restart() {
    if (this.#all) this.#watch();
  }

  #watch() {
    this.close();
    const { open, lost, refused, commit, rows } = this.on;
    const message = (one) => {
      commit(one);
      if (!this.#isCrowded) rows(one);
    };
    this.#all = new Watch({ model: this.#model }, this.#include(!this.#isCrowded), { open, lost, refused, message });
    this.#watchChosen();
  }

  /** Receive the inputs of this stream in any case. */
  choose(stream) {
    this.#chosen = stream;
    this.#watchChosen();
  }

  /** Receive less if many streams are live, and all if few are. */
  adapt(live) {
    if (this.#all === null || this.#isCrowded === live > MAX_WITH_INPUTS) return;
    if (Math.abs(live - MAX_WITH_INPUTS) <= MAX_WITH_INPUTS / 5) return;
    this.#isCrowded = live > MAX_WITH_INPUTS;
    this.#watch();
  }

  #watchChosen() {
    this.#one?.close();
    this.#one = null;
    if (!this.#isCrowded || !this.#chosen || !this.#all) return;
    const on = { open() {}, lost() {}, refused() {}, message: this.on.rows };
    this.#one = new Watch({ model: this.#model, stream: this.#chosen }, this.#include(true), on);
  }

  #include(inputs) {
    return { inputs, candidate: this.on.hasCandidate() };
  }
}
