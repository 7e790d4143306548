// The committed predictions of a model as they arrive: a watch of all streams, and of those that are shown if there are many.

import { modelOf } from "./service.js";

const MAX_WITH_INPUTS = 100; // with more live streams, inputs are received for the streams that are shown only
const AGAIN_MS = 5_000; // until a rejected watch is tried again

export class LiveFeed {
  isOpen = false; // whether messages arrive
  #all = null; // ends the watch of the whole model
  #shown = new Map(); // stream -> ends its own watch, if `#isCrowded`
  #wanted = [];
  #isCrowded = false;
  #model = "";

  /**
   * @param {{hasCandidate: Function, open: Function, lost: Function, refused: Function, commit: Function, rows: Function}} on -
   *   `commit` gets every message; `rows` those with inputs; `lost` gets the seconds until the next attempt
   */
  constructor(on) {
    this.on = on;
  }

  /** Whether many streams are live. */
  get isCrowded() {
    return this.#isCrowded;
  }

  /** Watch a model. */
  open(model) {
    this.#model = model;
    this.#watch();
  }

  close() {
    this.#all?.abort();
    this.#all = null;
    this.isOpen = false;
    this.#watchShown();
  }

  /** Watch again, if a model is watched, with what a trial of a release needs. */
  restart() {
    if (this.#all) this.#watch();
  }

  /** Receive the inputs of these streams in any case. */
  choose(streams) {
    if (String(streams) === String(this.#wanted)) return;
    this.#wanted = streams;
    this.#watchShown();
  }

  /** Receive less if many streams are live, and all if few are. */
  adapt(live) {
    if (this.#all === null || this.#isCrowded === live > MAX_WITH_INPUTS) return;
    if (Math.abs(live - MAX_WITH_INPUTS) <= MAX_WITH_INPUTS / 5) return;
    this.#isCrowded = live > MAX_WITH_INPUTS;
    this.#watch();
  }

  #watch() {
    this.close();
    const [isCrowded, { open, lost, commit, rows }] = [this.#isCrowded, this.on];
    const onConnection = (retryMs) => {
      this.isOpen = retryMs === undefined;
      if (this.isOpen) open();
      else lost(retryMs / 1000);
    };
    const onEvent = (event) => {
      commit(event);
      if (!isCrowded) rows(event);
    };
    this.#all = this.#follow({ inputs: !isCrowded, onConnection }, onEvent, (problem) => this.#failed(problem));
    this.#watchShown();
  }

  /** End the watches of single streams that are not needed now, and open those that are missing. */
  #watchShown() {
    const wanted = this.#isCrowded && this.#all ? this.#wanted : [];
    for (const [stream, watch] of this.#shown) {
      if (wanted.includes(stream)) continue;
      watch.abort();
      this.#shown.delete(stream);
    }
    for (const stream of wanted) {
      if (!this.#shown.has(stream)) this.#shown.set(stream, this.#follow({ stream, inputs: true }, this.on.rows));
    }
  }

  /** Watch until the returned controller is aborted. */
  #follow(options, onEvent, onFailure = () => {}) {
    const control = new AbortController();
    const { signal } = control;
    const candidate = this.on.hasCandidate() || undefined;
    const run = async () => {
      for await (const event of modelOf(this.#model).watch({ ...options, candidate, signal })) {
        if (signal.aborted) return;
        onEvent(event);
      }
    };
    run().catch((problem) => signal.aborted || onFailure(problem));
    return control;
  }

  /** The service rejects the watch: for want of a key, or because the model is gone, which may come back. */
  #failed(problem) {
    this.isOpen = false;
    if (problem.status === 401 || problem.status === 403) return this.on.refused();
    const control = this.#all;
    this.on.lost(AGAIN_MS / 1000);
    setTimeout(() => control === this.#all && this.#watch(), AGAIN_MS);
  }
}
