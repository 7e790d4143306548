import { StepwellError, closedError, problemError } from "./errors.js";
import { openSocket } from "./socket.js";
import { noAnswer, within } from "./transport.js";

/** @import { Model } from "./client.js" */
/** @import { Inputs, Source } from "./inputs.js" */
/** @import { CallOptions, Request } from "./options.js" */
/** @import { StepResponse } from "./api.js" */

/** Larger timesteps are sent over HTTP: the service closes a feed on a message above its limit. */
const MAX_MESSAGE_BYTES = 65_536;

/**
 * A live feed of one model. Use `Model.feed`.
 *
 * Steps of different streams are in flight at the same time. Steps of one stream are sent one after the other, in the
 * order of the calls. If the connection is lost, pending steps are sent again over the next one, with the same `seq`;
 * while no WebSocket can be opened, over HTTP.
 */
export class Feed {
  #closed = false;
  #number = 0;
  #onClientClose;
  #path;
  /** @type {Promise<WebSocket> | undefined} */
  #socket;
  /** @type {Map<number, { resolve: (message: any) => void, reject: (error: Error) => void, request: Request }>} */
  #pending = new Map();

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.#path = `${model.path}/feed`;
    this.transport = model.client.transport;
    this.#onClientClose = () => this.close();
    this.transport.closing.signal.addEventListener("abort", this.#onClientClose, { once: true });
  }

  /**
   * Step a stream by one timestep and return the response, with the prediction in `outputs`.
   * @param {string} stream
   * @param {Inputs} inputs
   * @param {CallOptions & { source?: Source }} [options] `source`: as for `Stream.step`.
   * @returns {Promise<StepResponse>}
   */
  step(stream, inputs, options) {
    return this.model.stream(stream).stepBy(inputs, options, this.#attempt.bind(this));
  }

  /** Close the connection; pending steps fail with `closed`. */
  close() {
    this.#closed = true;
    this.transport.closing.signal.removeEventListener("abort", this.#onClientClose);
    for (const { reject } of this.#pending.values()) reject(closedError());
    this.#socket?.then((socket) => socket.close(1000), () => undefined);
  }

  /** @param {Request} request @param {number} timeoutMs */
  async #attempt(request, timeoutMs) {
    if (this.#closed) throw closedError();
    const id = ++this.#number;
    const message = this.transport.format.encode({ id, stream: request.stream, ...request.body });
    if (message.length > MAX_MESSAGE_BYTES) return this.transport.attempt(request, timeoutMs);
    const begin = performance.now();
    /** @type {WebSocket} */
    let socket;
    try {
      socket = await within(this.#open(), timeoutMs, () => noAnswer(this.#path, "not open", request, false));
    } catch (error) {
      if (this.#closed) throw closedError();
      if (error instanceof StepwellError) throw error;
      return this.transport.attempt(request, Math.max(1, timeoutMs - (performance.now() - begin)));
    }
    return this.#exchange(socket, id, message, request, timeoutMs - (performance.now() - begin));
  }

  #open() {
    if (!this.#socket) {
      const opening = openSocket(
        this.transport,
        this.#path,
        (message) => this.#onMessage(message),
        (reason) => this.#onClose(opening, reason),
      );
      opening.catch(() => this.#forget(opening));
      this.#socket = opening;
    }
    return this.#socket;
  }

  /**
   * @param {WebSocket} socket @param {number} id @param {string | Uint8Array<ArrayBuffer>} message
   * @param {Request} request @param {number} timeoutMs
   */
  async #exchange(socket, id, message, request, timeoutMs) {
    const response = new Promise((resolve, reject) => {
      if (this.#closed) return reject(closedError());
      this.#pending.set(id, { resolve, reject, request });
      socket.send(message);
    });
    try {
      return await within(response, timeoutMs, () => noAnswer(socket.url, "none in time", request));
    } finally {
      this.#pending.delete(id);
    }
  }

  /** @param {any} message A message without an `id` is the response to the oldest step. */
  #onMessage({ id, error, stream, ...response }) {
    const waiting = this.#pending.get(id ?? this.#pending.keys().next().value);
    if (error) waiting?.reject(problemError(error));
    else waiting?.resolve(response);
  }

  /** @param {Promise<WebSocket>} socket @param {string} reason */
  #onClose(socket, reason) {
    this.#forget(socket);
    for (const { reject, request } of this.#pending.values()) reject(noAnswer(this.#path, reason, request));
  }

  /** @param {Promise<WebSocket>} socket */
  #forget(socket) {
    if (this.#socket === socket) this.#socket = undefined;
  }
}
