// The API reference: the description of each route from openapi.json, with a form that sends a request. No third-party code.

import { get, getJson, hasKey, headers, setKey } from "../dashboard/service.js";
import { bodyOf, parameterOf } from "./examples.js";

const $ = (id) => document.getElementById(id);

/** Create an element; string parts become text nodes, never markup. */
function make(tag, properties = {}, ...parts) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...parts);
  return element;
}

/** A part of the document with the schemas that it refers to in it. */
function resolved(part, schemas) {
  if (typeof part !== "object" || part === null) return part;
  if (Array.isArray(part)) return part.map((item) => resolved(item, schemas));
  if (part.$ref) return resolved(schemas[part.$ref.split("/").at(-1)], schemas);
  return Object.fromEntries(Object.entries(part).map(([name, item]) => [name, resolved(item, schemas)]));
}

/** An example value of a schema, with required fields only. */
function example(schema) {
  if ("example" in schema) return schema.example;
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.default ?? schema.enum[0];
  if (schema.anyOf) return example(schema.anyOf[0]);
  if (schema.type === "object") {
    return Object.fromEntries((schema.required ?? []).map((name) => [name, example(schema.properties?.[name] ?? {})]));
  }
  if (schema.type === "array") return [example(schema.items ?? {})];
  return schema.type === "integer" ? 1 : "a";
}

function field(parameter, inputs, model) {
  const id = `f${Math.random().toString(36).slice(2)}`;
  const input = make("input", { id, spellcheck: false, autocomplete: "off", placeholder: parameter.in });
  if (parameter.required) input.required = true;
  if (parameter.in === "path") input.value = parameterOf(parameter.name, model);
  inputs.set(parameter, input);
  const parts = [make("label", { htmlFor: id }, make("code", {}, parameter.name)), input];
  if (parameter.description) parts.push(make("p", { className: "note" }, parameter.description));
  return parts;
}

/** The request of a filled-in form: [path, options of fetch]. */
function requestOf(method, path, inputs, body) {
  const query = new URLSearchParams();
  const requestHeaders = headers();
  for (const [{ name, in: where }, { value }] of inputs) {
    if (where === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (value && where === "query") query.set(name, value);
    else if (value) requestHeaders[name] = value;
  }
  if (body) requestHeaders["content-type"] = "application/json";
  const target = query.size ? `${path}?${query}` : path;
  return [target.replace(/^\//, ""), { method: method.toUpperCase(), headers: requestHeaders, body: body?.value }];
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlOf([path, { method, headers: sent, body }]) {
  const shown = { ...sent, ...(sent.authorization && { authorization: "Bearer $STEPWELL_KEY" }) };
  const words = ["curl", ...(method === "GET" ? [] : ["-X", method]), quoted(new URL(path, document.baseURI).href)];
  for (const [name, value] of Object.entries(shown)) words.push("-H", name === "authorization" ? `"${name}: ${value}"` : quoted(`${name}: ${value}`));
  if (body) words.push("-d", quoted(body));
  return words.join(" ");
}

async function send(request, out) {
  out.replaceChildren("...");
  try {
    const response = await fetch(new URL(request[0], document.baseURI), { ...request[1], cache: "no-store" });
    const text = await response.text();
    let shown = text;
    try {
      shown = JSON.stringify(JSON.parse(text), null, 1);
    } catch {
      // not JSON: shown unchanged
    }
    out.dataset.good = response.ok ? "yes" : "no";
    out.replaceChildren(`${response.status}\n${shown}`);
  } catch (problem) {
    out.dataset.good = "no";
    out.replaceChildren(String(problem));
  }
}

function operation(method, path, { description, parameters = [], requestBody, responses }, model) {
  const inputs = new Map();
  const schema = requestBody?.content["application/json"]?.schema; // the import of streams takes a file
  const body = schema && make("textarea", { spellcheck: false, value: JSON.stringify(bodyOf(path, model) ?? example(schema)) });
  if (body) body.setAttribute("aria-label", "Body");
  const out = make("pre", { className: "answer", hidden: true });
  out.setAttribute("role", "status");
  const curl = make("pre", { className: "curl-line", hidden: true });
  const form = make(
    "form",
    { className: "body" },
    make("div", { className: "fields" }, ...parameters.flatMap((one) => field(one, inputs, model))),
    ...(body ? [body] : []),
    make("div", { className: "controls" }, make("button", { type: "submit" }, "Send"), make("button", { type: "button", className: "curl" }, "As curl")),
    curl,
    out,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    out.hidden = false;
    send(requestOf(method, path, inputs, body), out);
  });
  form.querySelector(".curl").addEventListener("click", () => {
    curl.hidden = false;
    curl.replaceChildren(curlOf(requestOf(method, path, inputs, body)));
  });
  const rows = Object.entries(responses).map(([status, { description: words }]) =>
    make("tr", {}, make("td", {}, status), make("td", {}, words.replaceAll("`", ""))),
  );
  const detail = [make("table", {}, ...rows)];
  if (schema) detail.push(make("pre", {}, JSON.stringify(schema, null, 1)));
  return make(
    "details",
    {},
    make("summary", {}, make("span", { className: "method" }, method.toUpperCase()), make("code", {}, path), make("span", { className: "note" }, description ?? "")),
    form,
    make("details", { className: "more" }, make("summary", {}, "Responses and fields"), make("div", { className: "body" }, ...detail)),
  );
}

function show(document_, model) {
  const groups = new Map();
  for (const [path, methods] of Object.entries(resolved(document_.paths, document_.components.schemas))) {
    for (const [method, one] of Object.entries(methods)) {
      const tag = one.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), operation(method, path, one, model)]);
    }
  }
  $("about").textContent = `version ${document_.info.version}`;
  $("main").replaceChildren(
    ...document_.info.description.replaceAll("`", "").split("\n\n").map((text) => make("p", {}, text.replaceAll("\n", " "))),
    ...[...groups].flatMap(([tag, all]) => [make("h2", {}, tag), ...all]),
  );
}

async function load() {
  try {
    const [described, { models }] = await Promise.all([get("openapi.json").then((response) => response.json()), getJson("v1/models")]);
    show(described, models[0]);
    $("key-form").hidden = true;
  } catch ({ status, message }) {
    if (status !== 401 && status !== 403) {
      $("main").replaceChildren(make("p", {}, `The API description could not be loaded: ${message}.`));
      return;
    }
    $("key-problem").textContent = hasKey() ? (status === 403 ? "This key has no read permission." : "This key is not valid.") : "";
    $("key-form").hidden = false;
    $("key").focus();
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  load();
});
load();
