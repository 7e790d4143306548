// The stream that the page shows until the user has chosen one.

const OPENING_MS = 5000; // after a model is opened, the default is replaced once a stream is live

export class DefaultStream {
  #until = -Infinity;

  /** Begin for another model. */
  restart() {
    this.#until = performance.now() + OPENING_MS;
  }

  /** The user has chosen a stream: it is kept. */
  end() {
    this.#until = -Infinity;
  }

  /** The stream to show in place of `chosen`, or null for none: the first, if possible a live one. */
  of(streams, chosen) {
    const isOver = performance.now() > this.#until || streams.byName.get(chosen)?.seenAt > -Infinity;
    if (chosen !== null && isOver) return chosen;
    const [first] = streams.matching("").matches;
    return first && (chosen === null || first.isLive) ? first.name : chosen;
  }
}
