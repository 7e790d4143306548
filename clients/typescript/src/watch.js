import { StepwellError, problemError } from "./errors.js";
import { openSocket } from "./socket.js";

/** @import { Event, Gap, WatchOptions } from "./events.js" */
/** @import { Transport } from "./transport.js" */

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
const MAX_UNREAD = 10_000;

/**
 * @param {Transport} transport
 * @param {string} model
 * @param {WatchOptions} [options]
 * @returns {AsyncGenerator<Event | Gap, void, void>}
 */
export async function* watch(transport, model, options = {}) {
  const { stream, prefix, inputs = false, candidate, onConnection, signal } = options;
  let { since } = options;
  const isOver = () => transport.closing.signal.aborted || signal?.aborted;
  for (let failures = 0, isBack = false; !isOver(); ) {
    const inbox = new Inbox();
    const stop = () => inbox.end();
    const off = transport.onEnd(signal, stop);
    /** @type {WebSocket | undefined} */
    let socket;
    try {
      socket = await openSocket(transport, "/v1/watch", (message) => inbox.put(message), stop, signal);
      const subscription = { model, stream, prefix, since: stream === undefined ? undefined : since };
      socket.send(transport.format.encode({ watch: [subscription], inputs, candidate }));
      for await (const message of inbox) {
        failures = 0;
        if (message.error) throw problemError(message.error);
        if (message.stream !== undefined && message.gap === undefined && stream !== undefined) since = message.step;
        if (message.stream === undefined && message.gap === undefined) onConnection?.();
        if (message.stream !== undefined || message.gap !== undefined) yield message;
        else if (isBack && (stream === undefined || since === undefined)) yield { gap: 1 };
      }
    } catch (error) {
      if (error instanceof StepwellError && error.retry !== "same") throw error;
      if (!socket) await explain(transport, model, signal);
    } finally {
      off();
      socket?.close(1000);
    }
    isBack = true;
    if (isOver()) return;
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(++failures, 10));
    const pause = longest * (0.5 + Math.random() / 2);
    onConnection?.(pause);
    await transport.wait(pause, signal).catch(() => undefined); // aborted: the loop ends
  }
}

/**
 * Find out over HTTP why a WebSocket could not be opened: the platform does not give the response to its handshake.
 * @param {Transport} transport
 * @param {string} model
 * @param {AbortSignal} [signal]
 * @throws {StepwellError} The service rejects requests of this model.
 */
async function explain(transport, model, signal) {
  try {
    await transport.attempt({ method: "GET", path: `/v1/models/${model}` }, LONGEST_PAUSE_MS, signal);
  } catch (error) {
    if (!(error instanceof StepwellError) || (error.retry !== "same" && error.code !== "closed")) throw error;
  }
}

/** Messages that arrived and were not read yet; of too many the oldest are dropped and reported as a gap. */
class Inbox {
  /** @type {any[]} */
  #messages = [];
  #missed = 0;
  #isEnded = false;
  #wake = () => {};

  /** @param {any} message */
  put(message) {
    if (this.#messages.push(message) > MAX_UNREAD) this.#missed += this.#messages.shift().gap ?? 1;
    this.#wake();
  }

  end() {
    this.#isEnded = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#messages.length) {
        const gap = this.#missed;
        this.#missed = 0;
        if (gap) yield { gap };
        yield this.#messages.shift();
      }
      if (this.#isEnded) return;
      await new Promise((resolve) => (this.#wake = () => resolve(undefined)));
    }
  }
}
