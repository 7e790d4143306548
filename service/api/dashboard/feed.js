// How the page talks to the service: requests with the key, and a watch that comes back by itself.

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
  return fetch(new URL(path, document.baseURI), { headers: headers(), cache: "no-store", signal: AbortSignal.timeout(5000) });
}

/** GET JSON. Throws an Error with `status` where the service refuses. */
export async function getJson(path) {
  const answer = await get(path);
  if (!answer.ok) throw Object.assign(new Error(`${path} answered ${answer.status}`), { status: answer.status });
  return answer.json();
}

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
