// Write the types of the HTTP API, from a service's /openapi.json (a file or an address), to standard output:
//     node scripts/api-types.mjs http://127.0.0.1:8000/openapi.json > src/api.d.ts
// Only what the routes under /v1 use is written: the Open Inference Protocol has clients of its own.
import { readFile } from "node:fs/promises";

const [source] = process.argv.slice(2);
if (!source) {
  console.error("usage: node scripts/api-types.mjs FILE-OR-ADDRESS > src/api.d.ts");
  process.exit(2);
}
const text = /^https?:/.test(source) ? await (await fetch(source)).text() : await readFile(source, "utf8");
const { paths, components } = JSON.parse(text);
const native = Object.entries(paths).filter(([path]) => path.startsWith("/v1/"));
const names = new Set();
collect(native);
console.log("// Generated from /openapi.json by scripts/api-types.mjs; not edited by hand.\n");
console.log("/** A tensor: nested arrays in the shape that the model declares. */\nexport type Tensor = any;");
for (const name of [...names].sort()) {
  const schema = components.schemas[name];
  console.log(`\n${comment(schema, "")}export type ${name} = ${typeOf(schema, "")};`);
}

/** Collect the names of all schemas that a value refers to, also indirectly. */
function collect(value) {
  if (value === null || typeof value !== "object") return;
  const name = value.$ref?.split("/").pop();
  if (name && !names.has(name)) {
    names.add(name);
    collect(components.schemas[name]);
  }
  Object.values(value).forEach(collect);
}

function comment({ description }, indent) {
  return description ? `${indent}/** ${description} */\n` : "";
}

function typeOf(schema, indent) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return options.map((option) => typeOf(option, indent)).join(" | ");
  switch (schema.type) {
    case undefined:
      return "Tensor"; // the only values without a type
    case "array":
      if (schema.prefixItems) return `[${schema.prefixItems.map((item) => typeOf(item, indent)).join(", ")}]`;
      return `Array<${typeOf(schema.items ?? {}, indent)}>`;
    case "object":
      return objectOf(schema, indent);
    case "integer":
      return "number";
    case "string":
    case "number":
    case "boolean":
    case "null":
      return schema.type;
    default:
      throw new TypeError(`no type for the schema ${JSON.stringify(schema)}`);
  }
}

function objectOf({ properties, required = [], additionalProperties }, indent) {
  if (!properties) {
    const values = typeof additionalProperties === "object" ? typeOf(additionalProperties, indent) : "any";
    return `{ [name: string]: ${values} }`;
  }
  const deeper = `${indent}  `;
  const members = Object.entries(properties).map(
    ([name, member]) =>
      `${comment(member, deeper)}${deeper}${name}${required.includes(name) ? "" : "?"}: ${typeOf(member, deeper)};\n`,
  );
  return `{\n${members.join("")}${indent}}`;
}
