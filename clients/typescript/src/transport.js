import { StepwellError, abortedError, closedError, problemError } from "./errors.js";
import { JSON_FORMAT, msgpackFormat } from "./formats.js";

/** @import { CallOptions, ClientOptions, Format, Limits, Request, Send } from "./options.js" */

/** Milliseconds to wait for one response: longer than the service's default limit for a request. */
const ATTEMPT_MS = 15_000;
/** Milliseconds to wait for the next bytes of a stream of events, which has a comment every 15 s. */
const SILENCE_MS = 30_000;
const EVENT_STREAM = "text/event-stream";
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 2_000;
/** Statuses of a proxy whose backend is temporarily unavailable. */
const TRANSIENT = [429, 502, 503, 504];
/** The caller ended these calls. */
const ENDED = ["closed", "aborted"];
/** Errors of Node's `fetch` for a connection that was never opened; browsers do not tell these apart. */
const NEVER_SENT = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"];

/** Requests and responses over HTTP, with retries. */
export class Transport {
  /**
   * @param {string | URL} url
   * @param {ClientOptions} options
   */
  constructor(url, options) {
    this.base = baseUrl(url);
    /** @type {Format} */
    this.format = options.msgpack ? msgpackFormat(options.msgpack) : JSON_FORMAT;
    this.key = options.key;
    this.timeoutMs = options.timeoutMs ?? 60_000;
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    this.closing = new AbortController();
    this.fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
  }

  /** @param {CallOptions} [options] @returns {Limits} The limits of a call that begins now. */
  limits(options) {
    return { deadline: performance.now() + (options?.timeoutMs ?? this.timeoutMs), signal: options?.signal };
  }

  /**
   * Send a request until it succeeds, fails for good, or is at its limits. The service recognizes a repetition by its
   * `seq` and `after`, or by its key.
   * @param {Request} request
   * @param {Limits} limits
   * @param {Send} [attempt] How one attempt is sent; over HTTP by default.
   * @param {Retries} [retries]
   */
  async send(request, { deadline, signal }, attempt = this.attempt.bind(this), retries = new Retries(deadline)) {
    for (;;) {
      if (signal?.aborted) throw retries.final(abortedError(signal));
      try {
        return await attempt(request, Math.max(1, Math.min(ATTEMPT_MS, deadline - performance.now())), signal);
      } catch (error) {
        const pause = retries.pause(error);
        await this.wait(pause, signal).catch((ended) => Promise.reject(retries.final(ended)));
      }
    }
  }

  /** Wait; reject as soon as the call is over. @param {number} ms @param {AbortSignal} [signal] */
  wait(ms, signal) {
    let off = () => {};
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    return new Promise((resolve, reject) => {
      timer = setTimeout(resolve, ms);
      off = this.onEnd(signal, () => reject(this.#ended(signal)));
    }).finally(() => {
      clearTimeout(timer);
      off();
    });
  }

  /** As `onAbort`, also when the client is closed. @param {AbortSignal | undefined} signal @param {() => void} act */
  onEnd(signal, act) {
    const offs = [onAbort(this.closing.signal, act), onAbort(signal, act)];
    return () => offs.forEach((off) => off());
  }

  /** @param {AbortSignal} [signal] @param {boolean} [mutates] */
  #ended(signal, mutates) {
    return this.closing.signal.aborted ? closedError() : abortedError(signal, mutates ? "unknown" : "no");
  }

  /** @param {Request} request @param {number} timeoutMs @param {AbortSignal} [signal] */
  async attempt(request, timeoutMs, signal) {
    if (this.closing.signal.aborted) throw closedError();
    const abort = new AbortController();
    const stop = () => abort.abort();
    const timer = setTimeout(stop, timeoutMs);
    const off = this.onEnd(signal, stop);
    let response, body;
    try {
      response = await this.fetch(this.base + request.path, { ...this.#init(request), signal: abort.signal });
      body = new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      if (this.closing.signal.aborted || signal?.aborted) throw this.#ended(signal, mutates(request));
      throw noAnswer(this.base, abort.signal.aborted ? `none within ${Math.round(timeoutMs)} ms` : error, request);
    } finally {
      clearTimeout(timer);
      off();
    }
    return this.#read(response, body, request);
  }

  /**
   * Send a request and yield the events of its response. It is sent again until there is a first event.
   * @param {Request} request
   * @param {Limits} limits
   * @returns {AsyncGenerator<{ event: string, data: any }, void, void>}
   * @throws {StepwellError} Also for the event `problem`.
   */
  async *events(request, { deadline, signal }) {
    const retries = new Retries(deadline);
    for (;;) {
      const abort = new AbortController();
      const off = this.onEnd(signal, () => abort.abort());
      let isOpen = false;
      try {
        if (signal?.aborted || this.closing.signal.aborted) throw this.#ended(signal);
        const init = { ...this.#init(request, EVENT_STREAM), signal: abort.signal };
        const response = await this.#inTime(this.fetch(this.base + request.path, init), request);
        if (!response.headers.get("content-type")?.startsWith(EVENT_STREAM)) {
          this.#read(response, new Uint8Array(await response.arrayBuffer()), request);
          throw unreadable(response.status, new Uint8Array(), request);
        }
        const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
        const decoder = new TextDecoder();
        for (let text = ""; ; ) {
          const { done, value } = await this.#inTime(reader.read(), request);
          if (done) throw noAnswer(this.base, "the connection was closed", request);
          const blocks = (text + decoder.decode(value, { stream: true })).split("\n\n");
          text = blocks.pop() ?? "";
          for (const block of blocks) {
            const [, event, data] = block.match(/^event: (.*)\ndata: (.*)$/) ?? [];
            if (!event) continue; // a comment
            isOpen = true;
            if (event === "problem") throw problemError(JSON_FORMAT.decode(data));
            yield { event, data: JSON_FORMAT.decode(data) };
            if (event === "done") return;
          }
        }
      } catch (error) {
        if (signal?.aborted || this.closing.signal.aborted) throw this.#ended(signal);
        const failure = error instanceof StepwellError ? error : noAnswer(this.base, error, request);
        if (isOpen) throw failure;
        await this.wait(retries.pause(failure), signal);
      } finally {
        abort.abort(); // which ends the run
        off();
      }
    }
  }

  /** @template T @param {Promise<T>} promise @param {Request} request @returns {Promise<T>} */
  #inTime(promise, request) {
    return within(promise, SILENCE_MS, () => noAnswer(this.base, `none within ${SILENCE_MS} ms`, request));
  }

  /** @param {Request} request @param {string} [accept] @returns {RequestInit} */
  #init({ method, body, key }, accept = this.format.type) {
    /** @type {Record<string, string>} */
    const headers = { Accept: accept };
    if (this.key !== undefined) headers.Authorization = `Bearer ${this.key}`;
    if (key !== undefined) headers["Idempotency-Key"] = key;
    if (body === undefined) return { method, headers };
    headers["Content-Type"] = this.format.type;
    return { method, headers, body: this.format.encode(body) };
  }

  /** @param {Response} response @param {Uint8Array} body @param {Request} request */
  #read(response, body, request) {
    const retryAfterMs = milliseconds(response.headers.get("retry-after"));
    const isMsgpack = (response.headers.get("content-type") ?? "").includes("msgpack");
    let document;
    try {
      document = body.length ? (isMsgpack ? this.format : JSON_FORMAT).decode(body) : undefined;
    } catch (cause) {
      throw unreadable(response.status, body, request, retryAfterMs, cause);
    }
    if (response.ok) return document;
    if (typeof document?.code !== "string") throw unreadable(response.status, body, request, retryAfterMs);
    throw problemError(document, retryAfterMs);
  }
}

/** The retries of one call: growing pauses with jitter, so that clients retry at different times. */
export class Retries {
  /** @param {number} deadline */
  constructor(deadline) {
    this.deadline = deadline;
    this.failures = 0;
    this.inDoubt = false;
  }

  /**
   * Return the milliseconds to wait before the next attempt.
   * @param {unknown} error
   * @returns {number}
   * @throws {StepwellError} The error, if it is final or the time is over.
   */
  pause(error) {
    if (!(error instanceof StepwellError)) throw error;
    if (error.retry === "same" && !ENDED.includes(error.code)) {
      const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.failures++);
      const pause = (error.retryAfterMs ?? 0) + longest * Math.random();
      if (performance.now() + pause < this.deadline) {
        this.inDoubt ||= error.applied !== "no";
        return pause;
      }
    }
    throw this.final(error);
  }

  /**
   * Return the last error; `applied` is "unknown" instead of "no" if an earlier attempt may have been applied.
   * @param {StepwellError} error
   */
  final(error) {
    if (this.inDoubt && error.applied === "no") error.applied = "unknown";
    return error;
  }
}

/** @type {WeakMap<AbortSignal, Set<() => void>>} */
const actions = new WeakMap();

/**
 * Run an action as soon as a signal is aborted. A signal has one listener for all actions: Node warns of more than ten.
 * @param {AbortSignal | undefined} signal
 * @param {() => void} act
 * @returns {() => void} Leaves it undone.
 */
export function onAbort(signal, act) {
  if (signal?.aborted) act();
  if (!signal || signal.aborted) return () => {};
  const all = actions.get(signal) ?? new Set();
  if (!actions.has(signal)) {
    actions.set(signal, all);
    signal.addEventListener("abort", () => all.forEach((one) => one()), { once: true });
  }
  all.add(act);
  return () => all.delete(act);
}

/**
 * Return a promise's result, or reject after some milliseconds or when a signal is aborted.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {() => Error} late
 * @param {AbortSignal} [signal]
 * @param {"no" | "unknown"} [applied] Of a call that is aborted meanwhile.
 * @returns {Promise<T>}
 */
export async function within(promise, ms, late, signal, applied) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let off = () => {};
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(late()), Math.max(0, ms));
    off = onAbort(signal, () => reject(abortedError(signal, applied)));
  });
  try {
    return /** @type {T} */ (await Promise.race([promise, limit]));
  } finally {
    clearTimeout(timer);
    off();
  }
}

/**
 * Return the error of an attempt without a response.
 * @param {string} url
 * @param {unknown} reason
 * @param {Request} request
 * @param {boolean} [sent] Whether the service may have received the request.
 */
export function noAnswer(url, reason, request, sent = true) {
  const cause = /** @type {any} */ (reason)?.cause;
  const words = [/** @type {any} */ (reason)?.message ?? reason, cause?.message].filter(Boolean).join(": ");
  const applied = sent && mutates(request) && !NEVER_SENT.includes(cause?.code) ? "unknown" : "no";
  const fix = "Check that the service is running, then repeat the same call: it is applied at most once.";
  const message = `No response from ${url}: ${words}. ${fix}`;
  return new StepwellError("no_answer", message, { applied, retry: "same", cause: reason });
}

/** @param {Request} request */
function mutates(request) {
  return request.mutates ?? request.method !== "GET";
}

/**
 * @param {number} status @param {Uint8Array} body @param {Request} request
 * @param {number} [retryAfterMs] @param {unknown} [cause]
 */
function unreadable(status, body, request, retryAfterMs, cause) {
  const preview = JSON.stringify(new TextDecoder().decode(body.subarray(0, 80)));
  return new StepwellError(
    "unreadable_answer",
    `The response with status ${status} is not one of a Stepwell service: ${preview}. Check the service's address, ` +
      "and that the versions of client and service match.",
    {
      applied: mutates(request) ? "unknown" : "no",
      retry: TRANSIENT.includes(status) ? "same" : "never",
      status,
      retryAfterMs,
      cause,
    },
  );
}

/** @param {string | null} retryAfter Seconds; proxies may send a date, which is ignored. */
function milliseconds(retryAfter) {
  const seconds = Number(retryAfter || NaN);
  return seconds >= 0 && seconds < Infinity ? 1000 * seconds : undefined;
}

/** @param {string | URL} url */
function baseUrl(url) {
  try {
    const { protocol, href, search, hash } = new URL(url);
    if (/^https?:$/.test(protocol) && !search && !hash) return href.replace(/\/+$/, "");
  } catch {} // reported below, like another scheme
  throw new StepwellError("bad_url", `The address is '${url}'; expected http://HOST:PORT or https://HOST.`);
}
