// Access to the service: requests with the API key, and a watch that reconnects.

const TIMEOUT_MS = 5000;

let key = sessionStorage.getItem("stepwell.key") ?? "";

export const hasKey = () => key !== "";

/** Store the key for this browser tab. */
export function setKey(text) {
  key = text;
  sessionStorage.setItem("stepwell.key", text);
}

/** The headers of a request: the key, if there is one. */
export const headers = () => (key ? { authorization: `Bearer ${key}` } : {});

/** GET a path relative to the page; returns the Response, whatever its status. */
export function get(path) {
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  return fetch(new URL(path, document.baseURI), { headers: headers(), cache: "no-store", signal });
}

/** GET JSON. Throws an Error with `status` and the service's message if the request is rejected. */
export const getJson = async (path) => readJson(await get(path));

/** The path of a model's streams. */
export const streamsPath = (model) => `v1/models/${encodeURIComponent(model)}/streams`;

/** The path of a stream of a model, or of one of its resources. */
export const pathOf = (model, stream, resource) =>
  `${streamsPath(model)}/${encodeURIComponent(stream)}${resource ? `/${resource}` : ""}`;

/** DELETE something, with an idempotency key, which services may require; throws as `getJson` does. */
export async function remove(path) {
  const own = { "idempotency-key": newKey() };
  const signal = AbortSignal.timeout(4 * TIMEOUT_MS);
  const response = await fetch(new URL(path, document.baseURI), { method: "DELETE", headers: { ...headers(), ...own }, signal });
  if (!response.ok) await readJson(response);
}

/** Send JSON with an idempotency key, which services may require, and return JSON; throws as `getJson` does. */
export async function send(method, path, body = {}) {
  const own = { "content-type": "application/json", "idempotency-key": newKey() };
  const signal = AbortSignal.timeout(4 * TIMEOUT_MS);
  const options = { method, headers: { ...headers(), ...own }, body: JSON.stringify(body), signal };
  try {
    return await readJson(await fetch(new URL(path, document.baseURI), options));
  } catch (problem) {
    throw problem.status ? problem : new Error("The service did not respond, so the outcome is unknown. Check the stream before you retry.");
  }
}

async function readJson(response) {
  if (response.ok) return response.json();
  const { detail } = await response.json().catch(() => ({}));
  throw Object.assign(new Error(detail ?? `The service responded with status ${response.status}.`), { status: response.status });
}

/** A random key; `randomUUID` is missing on pages over plain HTTP from other hosts. */
const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 15;

/** Committed predictions of a model or of one stream, over a WebSocket that reconnects. */
export class Watch {
  #socket = null;
  #timer = 0;
  #wait = FIRST_WAIT_S;
  #closed = false;
  isOpen = false; // whether messages arrive
  #unauthorized = false; // whether the service rejected the key

  /**
   * @param {object} filter - {model, stream?}, as in the service's `watch` message
   * @param {{inputs: boolean, candidate: boolean}} include - what messages include besides the outputs: the inputs,
   *   and what the candidate of a release computed
   * @param {{message: Function, open: Function, lost: Function, refused: Function}} on - `lost` gets the seconds
   *   until the next connection attempt
   */
  constructor(filter, include, on) {
    this.subscription = { watch: [filter], ...include };
    this.on = on;
    this.#open();
  }

  close() {
    this.#closed = true;
    this.isOpen = false;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }

  #open() {
    const url = new URL("v1/watch", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.#socket = new WebSocket(url, ["stepwell.json"]));
    socket.onopen = () => {
      if (key) socket.send(JSON.stringify({ auth: key }));
      socket.send(JSON.stringify(this.subscription));
    };
    socket.onmessage = ({ data }) => {
      if (this.#closed) return;
      const message = JSON.parse(data);
      if ("watching" in message) {
        this.#wait = FIRST_WAIT_S;
        this.isOpen = true;
        this.on.open();
      } else if (message.error) {
        this.#unauthorized = message.error.status === 401 || message.error.status === 403;
      } else {
        this.on.message(message);
      }
    };
    socket.onclose = () => {
      this.isOpen = false;
      if (this.#closed) return;
      if (this.#unauthorized) return this.on.refused();
      const wait = this.#wait * (0.75 + Math.random() / 2); // jitter, so that pages reconnect at different times
      this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_S);
      this.on.lost(wait);
      this.#timer = setTimeout(() => this.#open(), wait * 1000);
    };
  }
}
