// The search for streams: requests the ids that begin with a text, page by page.

import { getJson } from "../service.js";

const WAIT_MS = 250; // after the last key, so that typing a word is one request
const LIMIT = 200; // streams of one page
const START = /^[\w.:@-]{1,128}$/; // of a stream id

export class Search {
  isBusy = false;
  problem = "";
  #cursor = null; // of the next page
  #requested = ""; // the text that `#cursor` belongs to
  #timer = 0;
  #requests = 0;

  /**
   * @param {{field: HTMLInputElement, path: Function, onType: Function, onFound: Function}} parts - `path` returns the
   *   path of the model's streams; `onType` is called for each change of the text; `onFound` gets streams of the service
   */
  constructor(parts) {
    Object.assign(this, parts);
    this.field.addEventListener("input", () => this.#type());
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.field.value) return;
      event.preventDefault();
      this.set("");
    });
  }

  get text() {
    return this.field.value.trim();
  }

  /** Whether the service has more streams for the text. */
  get hasMore() {
    return this.#cursor !== null && this.#requested === this.text;
  }

  /** Whether an id can begin with the text: the service rejects other prefixes. */
  get #isStart() {
    return START.test(this.text);
  }

  /** Search for another text. */
  set(text) {
    if (this.field.value === text) return;
    this.field.value = text;
    this.#type();
  }

  /** Record the cursor after the start of the service's list, unless further pages of it were read. */
  listed(cursor) {
    if (this.text || (this.#requested === "" && this.#cursor !== null)) return;
    [this.#requested, this.#cursor] = ["", cursor];
  }

  /** Discard what was found, for another model. */
  clear() {
    clearTimeout(this.#timer);
    Object.assign(this, { isBusy: false, problem: "" });
    [this.#requested, this.#cursor] = ["", null];
    this.#requests += 1;
    if (this.#isStart) this.#ask(null);
  }

  /** Read the next page. */
  more() {
    if (this.hasMore && !this.isBusy) this.#ask(this.#cursor);
  }

  #type() {
    clearTimeout(this.#timer);
    this.problem = "";
    this.isBusy = this.#isStart;
    [this.#requested, this.#cursor] = [this.text, null];
    this.#requests += 1; // a response to an earlier text is not used
    this.onType();
    if (this.isBusy) this.#timer = setTimeout(() => this.#ask(null), WAIT_MS);
  }

  async #ask(cursor) {
    const [text, request] = [this.text, (this.#requests += 1)];
    const query = new URLSearchParams({ prefix: text, limit: LIMIT, ...(cursor && { cursor }) });
    this.isBusy = true;
    try {
      const found = await getJson(`${this.path()}?${query}`);
      if (request !== this.#requests) return;
      [this.#requested, this.#cursor] = [text, found.cursor];
      this.onFound(found.streams);
    } catch (problem) {
      if (request === this.#requests) this.problem = problem.message;
    } finally {
      if (request === this.#requests) this.isBusy = false;
    }
  }
}
