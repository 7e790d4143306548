export type WatchOptions = {
  /** Watch only this stream; by default, all streams of the model. */
  stream?: string;
  /** Watch only streams whose id begins with it. */
  prefix?: string;
  /** With `stream`, the last step already known; later steps are yielded first. */
  since?: number;
  /** Include the inputs in each event. */
  inputs?: boolean;
  /** Include what the candidate of a release computed. */
  candidate?: boolean;
  /** Ends the watch, also while it waits for an event. */
  signal?: AbortSignal;
  /**
   * Called when the connection is ready, and with the milliseconds until the next attempt when it is lost or could not be
   * opened.
   */
  onConnection?: (retryMs?: number) => void;
};

/** A committed step or chunk; a chunk's tensors have a leading time axis. */
export type Event = {
  model: string;
  stream: string;
  step: number;
  state_id: string;
  outputs: Record<string, any>;
  inputs?: Record<string, any>;
  candidate?: { version: number; outputs: Record<string, any> };
  gap?: undefined;
};

/**
 * Events that a watch has missed: `gap` is the minimum number of timesteps whose predictions were missed. After a lost
 * connection, a watch of one stream continues after the last event that it yielded, and has a gap for steps that the
 * service no longer keeps; a watch of several streams has a gap after each reconnection.
 */
export type Gap = { gap: number };
