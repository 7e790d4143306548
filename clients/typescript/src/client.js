import { problemError, StepwellError } from "./errors.js";
import { Feed } from "./feed.js";
import { plain, stringify } from "./formats.js";
import { Handles } from "./handles.js";
import { bulkStep } from "./bulk.js";
import { Transport, within } from "./transport.js";
import { watch } from "./watch.js";

/** @import { CallOptions, ClientOptions, Limits, Request, Send } from "./options.js" */
/** @import { Inputs, InputsByStream, Source } from "./inputs.js" */
/** @import { Position, RolloutTimestep, StepResults } from "./results.js" */
/** @import { Event, Gap, WatchOptions } from "./events.js" */
/**
 * @import { ModelDescription, NewSnapshotResponse, PackedStateResponse, PeekResponse, PositionResponse, RolloutBody,
 *   RolloutResponse, ServiceResponse, SnapshotEntry, StateBody, StateResponse, StatusResponse, StepResponse,
 *   StepsBody } from "./api.js"
 */

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const NAMED = "1 to 64 of A-Z a-z 0-9 . _ -, a letter or digit first";

/** A connection to a service, in browsers and Node. */
export class Client {
  /**
   * Create the client; nothing is sent yet.
   * @param {string | URL} url The service's address, `http://HOST:PORT`.
   * @param {ClientOptions} [options]
   * @throws {StepwellError} `bad_url`.
   */
  constructor(url, options = {}) {
    this.transport = new Transport(url, options);
    this.keepStreams = options.keepStreams ?? 65_536;
  }

  /**
   * Return a model by name. The returned object holds the positions of its streams, so two objects of one model are two
   * independent writers.
   * @param {string} name
   */
  model(name) {
    check("model's name", name, NAME, NAMED);
    return new Model(this, name);
  }

  /**
   * Return the service's version, durability and limits.
   * @param {CallOptions} [options]
   * @returns {Promise<ServiceResponse>}
   */
  info(options) {
    return this.request({ method: "GET", path: "/v1/info" }, options);
  }

  /**
   * Send any request of the HTTP API, with the client's retries, and return the response's document. A request that
   * changes a stream needs `seq` or `after` in its body, or a `key`: else a retry may be applied twice.
   * @param {Request} request
   * @param {CallOptions} [options]
   * @returns {Promise<any>}
   */
  request(request, options) {
    return this.transport.send({ ...request, body: plain(request.body) }, this.transport.limits(options));
  }

  /** Close all connections, including those of feeds and active watches; calls that wait fail with `closed`. */
  close() {
    this.transport.closing.abort();
  }
}

/** A model of a service, with the positions of its streams. Use `Client.model`. */
export class Model {
  /** @type {Handles<Stream>} */
  #handles;

  /**
   * @param {Client} client
   * @param {string} name
   */
  constructor(client, name) {
    this.client = client;
    this.name = name;
    this.path = `/v1/models/${name}`;
    this.#handles = new Handles((stream) => new Stream(this, stream), client.keepStreams);
  }

  /**
   * Return the handle of a stream; the same id returns the same handle.
   * @param {string} id
   * @throws {StepwellError} `bad_request`: the id is not a valid stream id.
   */
  stream(id) {
    check("stream id", id, /^(?!\.\.?$)[A-Za-z0-9._:@-]{1,128}$/, "1 to 128 of A-Z a-z 0-9 . _ : @ -");
    return this.#handles.get(id);
  }

  /**
   * Return the model's description: its inputs, outputs and states.
   * @param {CallOptions} [options]
   * @returns {Promise<ModelDescription>}
   */
  describe(options) {
    return this.client.request({ method: "GET", path: this.path }, options);
  }

  /**
   * Step many streams by one timestep each, in a request or two. Return a response per stream, or its error; a failed
   * stream does not affect the others.
   * @param {InputsByStream} inputs By stream id.
   * @param {CallOptions} [options]
   * @returns {Promise<StepResults>}
   * @throws {StepwellError} No stream was stepped, or the outcome is unknown.
   */
  stepMany(inputs, options) {
    return bulkStep(this, plain(inputs), this.client.transport.limits(options));
  }

  /**
   * Run one timestep whose state is in the call; the service stores nothing.
   * @param {Inputs} inputs
   * @param {string | null} [state] The packed state of an earlier response, or of `Stream.packedState`; null, the default,
   *   is the model's initial state.
   * @param {CallOptions} [options]
   * @returns {Promise<{ outputs: any, state: string }>}
   */
  run(inputs, state = null, options) {
    const request = { method: "POST", path: `${this.path}/run`, body: { inputs, state }, mutates: false };
    return this.client.request(request, options);
  }

  /**
   * Run one timestep of each of several states, in one request. Return a response per state, or its error.
   * @param {Inputs} inputs With a leading axis for the states.
   * @param {(string | null)[]} states
   * @param {CallOptions} [options]
   * @returns {Promise<({ outputs: any, state: string } | StepwellError)[]>}
   */
  async runMany(inputs, states, options) {
    const request = { method: "POST", path: `${this.path}/run`, body: { inputs, state: states }, mutates: false };
    const { outputs, state, errors } = await this.client.request(request, options);
    return state.map((/** @type {string | null} */ text, /** @type {number} */ row) =>
      text === null ? problemError(errors[row]) : { outputs: each(outputs, (column) => column[row]), state: text },
    );
  }

  /** Open a live feed: steps of many streams over one WebSocket. */
  feed() {
    return new Feed(this);
  }

  /**
   * Yield predictions as they are committed, from any sender, until the client is closed, the loop is left, or `signal`
   * is aborted. A lost connection is opened again.
   * @param {WatchOptions} [options]
   * @returns {AsyncGenerator<Event | Gap, void, void>}
   * @throws {StepwellError} The service rejected the watch.
   */
  watch(options) {
    return watch(this.client.transport, this.name, options);
  }
}

/**
 * A stream's handle, which keeps the stream's position and sends it with each step. Use `Model.stream`.
 *
 * The first call reads the position from the service. If another writer changes the stream, the next call fails with
 * `state_changed`, and `resume` reads the position again. After an error with `applied: "unknown"`, repeat the same call:
 * it is applied at most once. Calls of one stream are sent in their order, each after the response to the one before.
 */
export class Stream {
  /** @type {Promise<unknown>} */
  #last = Promise.resolve();
  /** @type {Position | undefined} */
  #position;
  /** The last call with a key, until it succeeds. */
  #keyed = "";
  #key = "";
  /** What that call forks: kept for its position. @type {Stream | undefined} */
  #forked;

  /**
   * @param {Model} model
   * @param {string} id
   */
  constructor(model, id) {
    this.model = model;
    this.id = id;
    this.path = `${model.path}/streams/${id}`;
    /** Whether the service may have applied a step whose response did not arrive. */
    this.inDoubt = false;
  }

  /**
   * Step the stream by one timestep and return the response, with the prediction in `outputs`.
   * @param {Inputs} inputs
   * @param {CallOptions & { source?: Source }} [options]
   * @returns {Promise<StepResponse>}
   */
  step(inputs, options) {
    return this.stepBy(inputs, options);
  }

  /**
   * Step the stream by a chunk of timesteps; all are applied, or none.
   * @param {Inputs} inputs With a leading time axis.
   * @param {CallOptions & Pick<StepsBody, "return" | "create"> & { source?: Source }} [options]
   * @returns {Promise<StepResponse>}
   */
  steps(inputs, options) {
    const { source, return: returned, create } = options ?? {};
    return this.#commit("steps", { inputs, source, return: returned, create }, this.#limits(options));
  }

  /**
   * Feed the stream past timesteps; no predictions are returned.
   * @param {Inputs} inputs With a leading time axis.
   * @param {CallOptions} [options]
   * @returns {Promise<StepResponse>}
   */
  prime(inputs, options) {
    return this.steps(inputs, { ...options, return: "none" });
  }

  /**
   * Return the result that a step would have from the current state; nothing is committed.
   * @param {Inputs} inputs
   * @param {CallOptions & { chunk?: boolean }} [options] `chunk`: the inputs have a leading time axis.
   * @returns {Promise<PeekResponse>}
   */
  peek(inputs, options) {
    return this.#read({ ...this.#post("peek", { inputs, chunk: options?.chunk }), mutates: false }, options);
  }

  /**
   * Run the stream by its own predictions and return them; with `commit` the predicted timesteps are committed.
   * @param {number} horizon Timesteps to predict.
   * @param {CallOptions & Omit<RolloutBody, "horizon" | "inputs" | "seq" | "after"> & { inputs?: Inputs }} [options]
   *   `inputs`: the first input; by default it is computed from the stream's last prediction.
   * @returns {Promise<RolloutResponse>}
   */
  rollout(horizon, options = {}) {
    const { timeoutMs, signal, ...rest } = options;
    const body = { horizon, ...rest };
    if (options.commit) return this.#commit("rollout", body, this.#limits(options));
    return this.#read({ ...this.#post("rollout", body), mutates: false }, options);
  }

  /**
   * Run the stream by its own predictions, and yield each timestep as it is made; leaving the loop ends the run. With
   * `commit`, all timesteps are committed before the first is yielded.
   * @param {number} horizon Timesteps to predict.
   * @param {Parameters<Stream["rollout"]>[1]} [options] As for `rollout`.
   * @returns {AsyncGenerator<RolloutTimestep, void, void>}
   */
  async *rolloutTimesteps(horizon, options = {}) {
    const { timeoutMs, signal, ...rest } = options;
    if (options.commit) {
      const rollout = await this.rollout(horizon, options);
      for (let t = 0; t < horizon; t++) {
        const at = (/** @type {any} */ tensor) =>
          options.samples ? tensor.map((/** @type {any} */ one) => one[t]) : tensor[t];
        const last = t === horizon - 1 ? { rollout } : {};
        yield { outputs: each(rollout.outputs, at), next: each(rollout.next, at), ...last };
      }
      return;
    }
    const request = { ...this.#post("rollout", { horizon, ...rest }), mutates: false };
    let n = 0;
    let last;
    for await (const { event, data } of this.model.client.transport.events(request, this.#limits(options))) {
      if (event === "done") yield { ...last, rollout: { outputs: {}, ...data } };
      else if (++n < horizon) yield data;
      else last = data;
    }
  }

  /**
   * Create another stream as a copy of this one, or of a snapshot of it, and return its handle.
   * @param {string} to
   * @param {CallOptions & { snapshot?: string }} [options]
   */
  fork(to, options) {
    const other = this.model.stream(to);
    const from = options?.snapshot === undefined ? undefined : { snapshot: options.snapshot };
    const request = this.#post("fork", { to, from });
    other.#forked = this;
    return other.exclusive(this.#limits(options), async (limits) => {
      other.moveTo(await other.#sendOnce(request, limits, this.#position));
      other.#forked = undefined;
      return other;
    });
  }

  /**
   * Reset the stream to its initial state or to a snapshot, if its position is still the handle's.
   * @param {CallOptions & { to?: string }} [options] `to`: the snapshot's name.
   * @returns {Promise<PositionResponse>}
   */
  reset(options) {
    const to = options?.to === undefined ? undefined : { snapshot: options.to };
    return this.exclusive(this.#limits(options), async (limits) => {
      const after = (await this.position(limits)).state_id ?? undefined;
      return this.moveTo(await this.#sendOnce(this.#post("reset", { to, after }), limits));
    });
  }

  /**
   * List the stream's snapshots.
   * @param {CallOptions} [options]
   * @returns {Promise<SnapshotEntry[]>}
   */
  async snapshots(options) {
    return (await this.#read({ method: "GET", path: `${this.path}/snapshots` }, options)).snapshots;
  }

  /**
   * Save a named copy of the stream's state, in place of an earlier one of that name; `reset` returns to it.
   * @param {string} name
   * @param {CallOptions} [options]
   * @returns {Promise<NewSnapshotResponse>}
   */
  async takeSnapshot(name, options) {
    const request = { method: "PUT", path: this.#snapshotPath(name), body: {} };
    return this.exclusive(this.#limits(options), (limits) => this.#sendOnce(request, limits));
  }

  /**
   * Delete a snapshot.
   * @param {string} name
   * @param {CallOptions} [options]
   * @returns {Promise<void>}
   */
  async forgetSnapshot(name, options) {
    const request = { method: "DELETE", path: this.#snapshotPath(name) };
    return this.exclusive(this.#limits(options), (limits) => this.#sendOnce(request, limits));
  }

  /**
   * Return the stream's state.
   * @param {CallOptions} [options]
   * @returns {Promise<StateResponse>}
   */
  state(options) {
    return this.#read({ method: "GET", path: `${this.path}/state` }, options);
  }

  /**
   * Return the stream's state as one text, for `putState`, for `Model.run`, or for a model on a device.
   * @param {CallOptions} [options]
   * @returns {Promise<PackedStateResponse>}
   */
  packedState(options) {
    return this.#read({ method: "GET", path: `${this.path}/state?packed=true` }, options);
  }

  /**
   * Replace the stream's state, and continue from it.
   * @param {Pick<StateBody, "states" | "state" | "step" | "fingerprint">} state As `state` or `packedState` returns it.
   * @param {CallOptions} [options]
   * @returns {Promise<PositionResponse>}
   */
  putState(state, options) {
    const request = { method: "PUT", path: `${this.path}/state`, body: plain(state) };
    return this.exclusive(this.#limits(options), async (limits) => this.moveTo(await this.#sendOnce(request, limits)));
  }

  /**
   * Return the stream's position and times. The handle keeps its own position; `resume` replaces it.
   * @param {CallOptions} [options]
   * @returns {Promise<StatusResponse>}
   * @throws {StepwellError} `stream_not_found`, or as for `step`.
   */
  status(options) {
    return this.#read({ method: "GET", path: this.path }, options);
  }

  /**
   * Read the stream's position from the service, continue from it, and return the step; 0 without a stream.
   * @param {CallOptions} [options]
   */
  resume(options) {
    return this.exclusive(this.#limits(options), async (limits) => {
      this.#position = undefined;
      return (await this.position(limits)).step;
    });
  }

  /**
   * Delete the stream, whatever its position; the next step creates a new one.
   * @param {CallOptions} [options]
   * @returns {Promise<void>}
   */
  delete(options) {
    return this.exclusive(this.#limits(options), async (limits) => {
      await this.#sendOnce({ method: "DELETE", path: this.path }, limits);
      this.moveTo({ step: 0 });
    });
  }

  /**
   * Yield the stream's predictions; as `Model.watch`.
   * @param {Omit<WatchOptions, "stream" | "prefix">} [options]
   */
  watch(options) {
    return this.model.watch({ ...options, stream: this.id });
  }

  // ------------------------------------------------------------------ for the other modules of this package

  /**
   * Step over HTTP or, with another `attempt`, over a feed.
   * @internal
   * @param {Inputs} inputs
   * @param {CallOptions & { source?: Source }} [options]
   * @param {Send} [attempt]
   * @returns {Promise<StepResponse>}
   */
  stepBy(inputs, options, attempt) {
    return this.#commit("step", { inputs, source: options?.source }, this.#limits(options), attempt);
  }

  /**
   * Run an action that changes this handle, after the handle's earlier calls.
   * @internal
   * @template T
   * @param {Limits} limits
   * @param {(limits: Limits) => Promise<T>} action
   * @returns {Promise<T>}
   */
  exclusive(limits, action) {
    const earlier = this.#last;
    const turn = within(earlier, limits.deadline - performance.now(), () => busy(this.id), limits.signal);
    const result = turn.then(() => action(limits));
    this.#last = Promise.allSettled([earlier, result]).then(() => {
      if (this.inDoubt) this.model.stream(this.id); // is kept, also if it was evicted before
    });
    return result;
  }

  /**
   * Return the stream's position, which is read from the service unless it is known.
   * @internal
   * @param {Limits} limits
   * @returns {Promise<Position>}
   */
  async position(limits) {
    if (this.#position) return this.#position;
    const found = await this.#send({ method: "GET", path: this.path }, limits).catch((error) => {
      if (error.code !== "stream_not_found") throw error;
      return { step: 0 };
    });
    return this.moveTo(found);
  }

  /**
   * Continue from a response's position, and return the response.
   * @internal
   * @template {Position} T
   * @param {T} response
   */
  moveTo(response) {
    this.#position = { step: response.step, state_id: response.state_id };
    this.#keyed = "";
    this.inDoubt = false;
    return response;
  }

  /**
   * @param {string} resource
   * @param {Record<string, unknown>} body
   * @param {Limits} limits
   * @param {Send} [attempt]
   */
  #commit(resource, body, limits, attempt) {
    const request = this.#post(resource, body);
    if (resource === "step") request.stream = this.id;
    return this.exclusive(limits, async () => {
      if (request.body.source) {
        this.#position = undefined; // until a response has the newest one
      } else {
        const { step, state_id } = await this.position(limits);
        request.body.seq = step + 1;
        if (state_id) request.body.after = state_id;
        else request.body.create ??= "must"; // without it, a late copy is applied after a reset
      }
      const response = await this.#send(request, limits, attempt);
      return response.state_id == null ? response : this.moveTo(response);
    });
  }

  /**
   * Send a request with a key, which the same call has again until it succeeds.
   * @param {Request} request @param {Limits} limits @param {Position} [from]
   */
  async #sendOnce(request, limits, from) {
    const call = stringify([request, from]);
    if (call !== this.#keyed) this.#key = newKey();
    this.#keyed = call;
    const response = await this.#send({ ...request, key: this.#key }, limits);
    this.#keyed = "";
    return response;
  }

  /** @param {string} name `..` would be the stream itself */
  #snapshotPath(name) {
    check("snapshot's name", name, NAME, NAMED);
    return `${this.path}/snapshots/${name}`;
  }

  /** @param {string} resource @param {unknown} body @returns {Request} */
  #post(resource, body) {
    return { method: "POST", path: `${this.path}/${resource}`, body: plain(body) };
  }

  /** @param {Request} request @param {Limits} limits @param {Send} [attempt] */
  async #send(request, limits, attempt) {
    try {
      return await this.model.client.transport.send(request, limits, attempt);
    } catch (error) {
      this.inDoubt ||= !(error instanceof StepwellError) || error.applied !== "no";
      throw error;
    }
  }

  /** @param {Request} request @param {CallOptions} [options] */
  #read(request, options) {
    return this.#send(request, this.#limits(options));
  }

  /** @param {CallOptions} [options] */
  #limits(options) {
    return this.model.client.transport.limits(options);
  }
}

/** @param {Record<string, any>} tensors @param {(tensor: any) => any} act */
function each(tensors, act) {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, act(tensor)]));
}

/** @param {string} stream */
function busy(stream) {
  return new StepwellError(
    "no_answer",
    `Stream '${stream}' was busy with earlier calls of this client until the timeout; this call was not sent. Repeat ` +
      "it, or give it a longer timeout.",
    { retry: "same" },
  );
}

/** @param {string} what @param {string} name @param {RegExp} pattern @param {string} expected */
function check(what, name, pattern, expected) {
  if (!pattern.test(name)) throw new StepwellError("bad_request", `The ${what} is '${name}'; expected ${expected}.`);
}

/** Return an `Idempotency-Key`: it has to be unique, not secret, and `crypto.randomUUID` exists only on https pages. */
export function newKey() {
  return Array.from({ length: 3 }, Math.random).join("-");
}
