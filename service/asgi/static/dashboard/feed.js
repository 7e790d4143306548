// How the page talks to the service: requests with the key, and a watch that comes back by itself.

const PATIENCE_MS = 5000;

let key = sessionStorage.getItem("stepwell.key") ?? "";

export const hasKey = () => key !== "";

/** Remember the key for this browser tab. */
export function setKey(text) {
  key = text;
  sessionStorage.setItem("stepwell.key", text);
}

/** The headers of a request: the key, where there is one. */
export const headers = () => (key ? { authorization: `Bearer ${key}` } : {});

/** GET a path relative to the page; answers the Response, whatever its status. */
export function get(path) {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  return fetch(new URL(path, document.baseURI), { headers: headers(), cache: "no-store", signal });
}

/** GET JSON. Throws an Error with `status`, and the service's words, where the service refuses. */
export const getJson = async (path) => readJson(await get(path));

/** The path of a stream of a model, or of what belongs to it. */
export const pathOf = (model, stream, what) =>
  `v1/models/${encodeURIComponent(model)}/streams/${encodeURIComponent(stream)}${what ? `/${what}` : ""}`;

/** Send JSON and answer JSON; throws as `getJson` does. Done once, also where the service demands to know that. */
export async function send(method, path, body = {}) {
  const names = { "content-type": "application/json", "idempotency-key": newName() };
  const signal = AbortSignal.timeout(4 * PATIENCE_MS);
  const sent = { method, headers: { ...headers(), ...names }, body: JSON.stringify(body), signal };
  try {
    return await readJson(await fetch(new URL(path, document.baseURI), sent));
  } catch (problem) {
    throw problem.status ? problem : new Error("The service did not answer. Look at the stream before you try again.");
  }
}

async function readJson(answer) {
  if (answer.ok) return answer.json();
  const { detail } = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(detail ?? `The service answered ${answer.status}.`), { status: answer.status });
}

/** A name that nobody else gives; `randomUUID` is missing on pages over plain HTTP from afar. */
const newName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 15;

/** Committed predictions of a model or of one stream, over a WebSocket that is opened again whenever it ends. */
export class Watch {
  #socket = null;
  #timer = 0;
  #wait = FIRST_WAIT_S;
  #closed = false;
  #locked = false; // whether the service wants another key

  /**
   * @param {object} filter - {model, stream?}, as the service's `watch` takes it
   * @param {boolean} inputs - whether each message also carries the inputs
   * @param {{message: Function, open: Function, lost: Function, refused: Function}} on - `lost` gets the seconds
   *   until the next try
   */
  constructor(filter, inputs, on) {
    this.hello = { watch: [filter], inputs };
    this.on = on;
    this.#open();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }

  #open() {
    const url = new URL("v1/watch", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.#socket = new WebSocket(url, ["stepwell.json"]));
    socket.onopen = () => {
      if (key) socket.send(JSON.stringify({ auth: key }));
      socket.send(JSON.stringify(this.hello));
    };
    socket.onmessage = ({ data }) => {
      if (this.#closed) return;
      const message = JSON.parse(data);
      if ("watching" in message) {
        this.#wait = FIRST_WAIT_S;
        this.on.open();
      } else if (message.error) {
        this.#locked = message.error.status === 401 || message.error.status === 403;
      } else {
        this.on.message(message);
      }
    };
    socket.onclose = () => {
      if (this.#closed) return;
      if (this.#locked) return this.on.refused();
      const wait = this.#wait * (0.75 + Math.random() / 2); // apart, so that pages do not come back all at once
      this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_S);
      this.on.lost(wait);
      this.#timer = setTimeout(() => this.#open(), wait * 1000);
    };
  }
}
