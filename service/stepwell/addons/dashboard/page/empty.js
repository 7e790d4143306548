// What the page shows in place of streams: how to send the first timestep, or that there is no model.

import { hasKey } from "./service.js";
import { curlLine } from "./shapes.js";

const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

/** Show that a model waits for its first timestep, with a command that sends one. */
export function showWaiting(model) {
  $("curl").hidden = $("cards").hidden = false;
  text("empty-title", "Waiting for the first timestep");
  text("empty-text", "A stream appears here after its first timestep. Send one, or drop a CSV file onto this page:");
  text("curl-line", curlLine(model, document.baseURI, hasKey()));
}

/** Show that there is no model of this name, or none at all. */
export function showNoModel(name, hasOthers) {
  for (const id of ["view", "missing", "compare", "fleet", "curl", "cards"]) $(id).hidden = true;
  document.querySelector(".work").classList.add("nothing");
  text("empty-title", name ? `There is no model ${name}` : "No model is loaded");
  const load = "Put an exported model into the model folder, then send POST /v1/models/reload or restart the service.";
  text("empty-text", name && hasOthers ? "Choose one of the models above." : load);
  $("empty").hidden = false;
}

$("curl").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl-line").textContent);
    text("curl-hint", "Copied");
  } catch {
    getSelection().selectAllChildren($("curl-line")); // browsers offer no clipboard over plain HTTP from other hosts
    text("curl-hint", "Selected");
  }
  setTimeout(() => text("curl-hint", "Copy"), 2000);
});
