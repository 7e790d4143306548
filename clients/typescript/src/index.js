/** A client of Stepwell for browsers and Node: streams as objects, safe retries, a live feed, watches. */
export { Client, Model, newKey, Stream } from "./client.js";
export { StepwellError } from "./errors.js";
export { Feed } from "./feed.js";
