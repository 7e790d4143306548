export { StepwellError } from "./errors.js";
export { Feed } from "./feed.js";
export { Client, Model, Stream } from "./client.js";
