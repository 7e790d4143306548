/**
 * One value per stream: all that callers still reference, and the most recently used of the others. A value that is in
 * doubt is never evicted: its successor would read a new position, and a repeated call would be applied twice.
 *
 * @template {{ inDoubt: boolean }} T
 */
export declare class Handles<T extends {
    inDoubt: boolean;
}> {
    #private;
    make: (name: string) => T;
    maxKept: number;
    /**
     * @param {(name: string) => T} make Creates the value of a stream.
     * @param {number} maxKept
     */
    constructor(make: (name: string) => T, maxKept: number);
    /** @param {string} name */
    get(name: string): T;
}
