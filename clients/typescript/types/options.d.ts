/** A msgpack library, for example `@msgpack/msgpack`. */
export type Msgpack = { encode(value: any): Uint8Array; decode(bytes: Uint8Array): any };

export type ClientOptions = {
  /** API key, if the service requires one. */
  key?: string;
  /**
   * Milliseconds that one call may take, including its retries and its wait for earlier calls of the stream; 60,000 by
   * default.
   */
  timeoutMs?: number;
  /** Unreferenced stream handles that a model keeps; 65,536 by default. */
  keepStreams?: number;
  /** A msgpack library; JSON is sent without one. */
  msgpack?: Msgpack;
  /** Sends HTTP requests in place of the platform's `fetch`. */
  fetch?: typeof fetch;
  /** The constructor to use in place of the platform's `WebSocket`; Node before 22 has none. */
  WebSocket?: any;
};

export type CallOptions = {
  /** Milliseconds that this call may take; the client's `timeoutMs` by default. */
  timeoutMs?: number;
  /** Ends the call, also while it waits for a response or for earlier calls; it then fails with `aborted`. */
  signal?: AbortSignal;
};

/** When a call ends at the latest, on the clock of `performance.now()`, and the caller's signal. */
export type Limits = { deadline: number; signal?: AbortSignal };

/** A request to send. */
export type Request = {
  method: string;
  /** Below the service's address. */
  path: string;
  body?: any;
  /** The `Idempotency-Key`. */
  key?: string;
  /** For a step of one timestep, the stream's id: a feed may carry it. */
  stream?: string;
  /** Whether the request can change a stream; by default, unless its method is GET. */
  mutates?: boolean;
};

/** Sends one attempt of a request. Resolves with the decoded response body, rejects with a `StepwellError`. */
export type Send = (request: Request, timeoutMs: number, signal?: AbortSignal) => Promise<any>;

/** How documents are encoded as bodies and messages. */
export type Format = {
  type: string;
  protocol: string;
  encode(document: unknown): string | Uint8Array<ArrayBuffer>;
  decode(body: Uint8Array | string): any;
};
