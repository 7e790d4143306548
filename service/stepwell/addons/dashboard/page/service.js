// The connection to the service: the client of clients/typescript with this tab's key, and documents that are not JSON.

import { Client, newKey } from "./vendor/stepwell-client.js";

const READ_MS = 5_000; // a response that takes longer counts as none
const CHANGE_MS = 20_000;
const ADDRESS = new URL(".", document.baseURI);

let key = sessionStorage.getItem("stepwell.key") ?? "";
let client = connect();

function connect() {
  const ownFetch = (url, options) => fetch(url, { ...options, cache: "no-store" });
  return new Client(ADDRESS, { ...(key && { key }), timeoutMs: CHANGE_MS, fetch: ownFetch });
}

export const hasKey = () => key !== "";

/** Store the key for this browser tab, and use it from now on. */
export function setKey(text) {
  key = text;
  sessionStorage.setItem("stepwell.key", text);
  client.close();
  client = connect();
}

/** The headers of a request that the client does not send. */
export const headers = () => (key ? { authorization: `Bearer ${key}` } : {});

/** A model of the service, with handles of its streams that share nothing with those of other calls. */
export const modelOf = (name) => client.model(name);

/** GET a document of the API; throws a `StepwellError`, with the `status` of a rejection. */
export const getJson = (path, timeoutMs = READ_MS) => client.request({ method: "GET", path: `/${path}` }, { timeoutMs });

/**
 * Change something, with an idempotency key: lost responses are requested again, and the change is applied once. Returns
 * the response's document; throws as `getJson` does.
 */
export const send = (method, path, body) => client.request({ method, path: `/${path}`, body, key: newKey() });

/** GET anything else below the page's address; returns the `Response`, whatever its status. */
export function get(path) {
  return fetch(new URL(path, ADDRESS), { headers: headers(), cache: "no-store", signal: AbortSignal.timeout(READ_MS) });
}

/** The path of a model's streams. */
export const streamsPath = (model) => `v1/models/${encodeURIComponent(model)}/streams`;

/** The path of a stream of a model, or of one of its resources. */
export const pathOf = (model, stream, resource) =>
  `${streamsPath(model)}/${encodeURIComponent(stream)}${resource ? `/${resource}` : ""}`;
