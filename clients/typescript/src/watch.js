import { StepwellError, problemError } from "./errors.js";
import { openSocket } from "./socket.js";

/** @import { Event, Gap, WatchOptions } from "./events.js" */
/** @import { Transport } from "./transport.js" */

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** A connection that is silent between two checks is given up; with an old replica, without heartbeats, only once. */
const CHECK_MS = 20_000;
const MAX_UNREAD = 10_000;

/**
 * @param {Transport} transport
 * @param {string} model
 * @param {WatchOptions} [options]
 * @returns {AsyncGenerator<Event | Gap, void, void>}
 */
export async function* watch(transport, model, options = {}) {
  const { stream, prefix, inputs = false, candidate, onConnection, signal } = options;
  let since = stream === undefined ? undefined : options.since;
  const isOver = () => transport.closing.signal.aborted || signal?.aborted;
  for (let failures = 0, isBack = false, isOld = false; !isOver(); ) {
    const inbox = new Inbox();
    const stop = () => inbox.end();
    const off = transport.onEnd(signal, stop);
    let idle = 0;
    const check = setInterval(() => {
      if (!idle++ || isOld) return;
      isOld = true;
      stop();
    }, CHECK_MS);
    /** @param {any} message An event, or several. */
    const receive = (message) => {
      idle = 0;
      isOld &&= !message.events;
      for (const one of message.events ?? [message]) inbox.put(one);
    };
    /** @type {WebSocket | undefined} */
    let socket;
    try {
      socket = await openSocket(transport, "/v1/watch?grouped=true", receive, stop, signal);
      socket.send(transport.format.encode({ watch: [{ model, stream, prefix, since }], inputs, candidate }));
      for await (const message of inbox) {
        failures = 0;
        if (message.error) throw problemError(message.error);
        if (message.watching) {
          onConnection?.();
          if (isBack && since === undefined) yield { gap: 1 };
        } else {
          if (stream !== undefined) since = message.step ?? since;
          yield message;
        }
      }
    } catch (error) {
      if (error instanceof StepwellError && error.retry !== "same") throw error;
      if (!socket) await explain(transport, model, signal);
    } finally {
      clearInterval(check);
      off();
      socket?.close(1000);
    }
    isBack = true;
    if (isOver()) return;
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** ++failures);
    const pause = longest * (0.5 + Math.random() / 2);
    onConnection?.(pause);
    await transport.wait(pause, signal).catch(() => undefined); // aborted: the loop ends
  }
}

/**
 * Find out over HTTP why a WebSocket could not be opened.
 * @param {Transport} transport
 * @param {string} model
 * @param {AbortSignal} [signal]
 * @throws {StepwellError} The service rejects requests of this model.
 */
async function explain(transport, model, signal) {
  try {
    await transport.attempt({ method: "GET", path: `/v1/models/${model}` }, LONGEST_PAUSE_MS, signal);
  } catch (error) {
    if (!(error instanceof StepwellError) || error.retry !== "same") throw error;
  }
}

/** Messages that arrived and were not read yet; a gap is in the place of the oldest of too many. */
class Inbox {
  /** @type {any[]} */
  #messages = [];
  #isEnded = false;
  #wake = () => {};

  /** @param {any} message */
  put(message) {
    if (this.#messages.push(message) > MAX_UNREAD) {
      const { gap = 1 } = this.#messages.shift();
      this.#messages[0] = { gap: gap + (this.#messages[0].gap ?? 1) };
    }
    this.#wake();
  }

  end() {
    this.#isEnded = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#messages.length) yield this.#messages.shift();
      if (this.#isEnded) return;
      await new Promise((resolve) => (this.#wake = () => resolve(undefined)));
    }
  }
}
