/**
 * One value per stream: all that callers still reference, and the most recently used of the others. A value that is in
 * doubt is never evicted: its successor would read a new position, and a repeated call would be applied twice.
 *
 * @template {{ inDoubt: boolean }} T
 */
export class Handles {
  /** @type {Map<string, T>} */
  #recent = new Map();
  /** @type {Map<string, WeakRef<T>>} */
  #alive = new Map();
  #forget = new FinalizationRegistry((/** @type {string} */ name) => {
    if (!this.#alive.get(name)?.deref()) this.#alive.delete(name);
  });

  /**
   * @param {(name: string) => T} make Creates the value of a stream.
   * @param {number} maxKept
   */
  constructor(make, maxKept) {
    this.make = make;
    this.maxKept = maxKept;
  }

  /** @param {string} name */
  get(name) {
    let handle = this.#recent.get(name) ?? this.#alive.get(name)?.deref();
    if (!handle) {
      handle = this.make(name);
      this.#alive.set(name, new WeakRef(handle));
      this.#forget.register(handle, name);
    }
    this.#recent.delete(name);
    this.#recent.set(name, handle); // the most recently used at the end
    for (let i = 0; i < 2 && this.#recent.size > this.maxKept; i++) this.#evictOldest();
    return handle;
  }

  #evictOldest() {
    const [[name, oldest]] = this.#recent;
    this.#recent.delete(name);
    if (oldest.inDoubt) this.#recent.set(name, oldest);
  }
}
