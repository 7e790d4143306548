import { StepwellError, closedError, problemError } from "./errors.js";
import { openSocket } from "./socket.js";
import { noAnswer, onAbort, within } from "./transport.js";

/** @import { Model } from "./client.js" */
/** @import { Inputs, Source } from "./inputs.js" */
/** @import { CallOptions, Request } from "./options.js" */
/** @import { StepResponse } from "./api.js" */

/** A connection on which nothing arrived for so long after a step was sent is given up. */
const SILENT_MS = 12_000;
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
  #off = () => {};
  #path;
  /** @type {Promise<WebSocket> | undefined} */
  #socket;
  /** @type {WebSocket | undefined} */
  #current;
  #waiting = 0;
  /** @type {Map<number, { resolve: (message: any) => void, reject: (error: Error) => void, request: Request,
   *   socket: WebSocket }>} */
  #pending = new Map();
  /** @type {number | undefined} When the first step was sent after the last message arrived. */
  #silentSince;

  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.#path = `${model.path}/feed`;
    this.transport = model.client.transport;
    this.#off = onAbort(this.transport.closing.signal, () => this.close());
  }

  /**
   * Step a stream by one timestep and return the response, with the prediction in `outputs`.
   * @param {string} stream
   * @param {Inputs} inputs
   * @param {CallOptions & { source?: Source }} [options] `source`: as for `Stream.step`.
   * @returns {Promise<StepResponse>}
   */
  step(stream, inputs, options) {
    const result = this.model.stream(stream).stepBy(inputs, options, this.#attempt.bind(this));
    this.#waiting += 1;
    return result.finally(() => (this.#waiting -= 1));
  }

  /** The number of steps without a response yet, sent or not. */
  get waiting() {
    return this.#waiting;
  }

  /** Close the connection; pending steps fail with `closed`. */
  close() {
    this.#closed = true;
    this.#off();
    for (const { reject } of this.#pending.values()) reject(closedError());
    this.#socket?.then((socket) => socket.close(1000), () => undefined);
  }

  /** @param {Request} request @param {number} timeoutMs @param {AbortSignal} [signal] */
  async #attempt(request, timeoutMs, signal) {
    if (this.#closed) throw closedError();
    const id = ++this.#number;
    const message = this.transport.format.encode({ id, stream: request.stream, ...request.body });
    if (message.length > MAX_MESSAGE_BYTES) return this.transport.attempt(request, timeoutMs, signal);
    const end = performance.now() + timeoutMs;
    /** @type {WebSocket} */
    let socket;
    try {
      socket = await within(this.#open(), timeoutMs, () => noAnswer(this.#path, "not open", request, false), signal);
    } catch (error) {
      if (this.#closed) throw closedError();
      if (error instanceof StepwellError) throw error;
      return this.transport.attempt(request, Math.max(1, end - performance.now()), signal);
    }
    const response = new Promise((resolve, reject) => {
      if (this.#closed) return reject(closedError());
      this.#pending.set(id, { resolve, reject, request, socket });
      this.#silentSince ??= performance.now();
      socket.send(message);
    });
    const late = () => {
      if (performance.now() - (this.#silentSince ?? Infinity) >= SILENT_MS) this.#onClose(socket, "it was silent");
      return noAnswer(socket.url, "none in time", request);
    };
    try {
      return await within(response, end - performance.now(), late, signal, "unknown");
    } finally {
      this.#pending.delete(id);
    }
  }

  #open() {
    if (!this.#socket) {
      /** @type {WebSocket} */
      let socket;
      const opening = openSocket(
        this.transport,
        this.#path,
        (message) => this.#onMessage(message),
        (reason) => this.#onClose(socket, reason),
      ).then((opened) => (this.#current = socket = opened));
      opening.catch(() => this.#socket === opening && (this.#socket = undefined));
      this.#socket = opening;
      this.#silentSince = undefined;
    }
    return this.#socket;
  }

  /** @param {any} message A message without an `id` is the response to the oldest step. */
  #onMessage({ id, error, stream, ...response }) {
    const number = id ?? this.#pending.keys().next().value;
    const waiting = this.#pending.get(number);
    this.#pending.delete(number);
    this.#silentSince = this.#pending.size ? performance.now() : undefined;
    if (error) waiting?.reject(problemError(error));
    else waiting?.resolve(response);
  }

  /** The steps are sent again over the next connection. @param {WebSocket} socket @param {string} reason */
  #onClose(socket, reason) {
    if (this.#current === socket) this.#socket = this.#current = undefined;
    socket.close(4000); // no effect if it is closed
    for (const pending of this.#pending.values()) {
      if (pending.socket === socket) pending.reject(noAnswer(this.#path, reason, pending.request));
    }
  }
}
