// What the page holds: the service's models, the opened model with its streams, and the chosen stream.

import { Replicas } from "./metrics.js";
import { Streams } from "./streams/live_streams.js";

export class PageState {
  models = null; // of the service; null until it has sent them
  model = null; // the opened one
  limits = {}; // the service's limits by setting name
  streams = new Streams();
  chosen = null; // the name of the stream that is shown; there may be no such stream
  isMissing = false; // whether the service has no such stream
  isReading = false; // whether a request for the models is on its way
  paused = false;
  fresh = false; // whether the chosen stream has changed since it was drawn
  replicas = new Replicas();
  refreshes = 0;
  ticks = 0; // of the timer that renders
  skipped = 0; // timesteps that were not received, at least

  /** Open a model of the service, without streams and without a chosen one. */
  openModel(model) {
    this.closeModel();
    this.model = { ...model, outputs: model.outputs.filter(({ kind }) => kind !== "ignore"), description: model };
  }

  /** Discard all that belongs to the opened model. */
  closeModel() {
    const [streams, replicas] = [new Streams(), new Replicas()];
    Object.assign(this, { model: null, streams, replicas, chosen: null, isMissing: false, skipped: 0 });
  }
}
