// The dashboard: the service's status, its live streams, and charts of the selected stream. Works for any model.

import { AlertCard } from "./alerts.js";
import { DriftCard } from "./drift.js";
import { get, getJson, hasKey, setKey, Watch } from "./feed.js";
import { Forecast } from "./forecast.js";
import { quantile, read, since } from "./metrics.js";
import { Dialog, Operations } from "./operations.js";
import { lineClass, Plot } from "./plot.js";
import { ReleaseCard } from "./release.js";
import { areProbabilities, bytes, curlLine, mostProbable, number, percent, seriesOf, timesteps } from "./shapes.js";
import { StreamStatus } from "./stream_status.js";
import { StreamList, Streams } from "./streams.js";

const MAX_WITH_INPUTS = 100; // with more live streams, inputs are received for the chosen stream only
const SPARK_S = 60;
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

const page = {
  models: null,
  model: null,
  limits: {}, // the service's limits by setting name
  streams: new Streams(),
  chosen: null,
  picked: false, // whether the user chose the stream
  paused: false,
  fresh: false, // whether the chosen stream has changed since it was drawn
  crowded: false, // whether there are more than MAX_WITH_INPUTS live streams
  all: null, // the watch of the whole model
  one: null, // the watch of the chosen stream, if `crowded`
  perSecond: [0],
  scrapes: new Map(),
  refreshes: 0,
  skipped: 0, // messages that the service dropped because this page read too slowly
};

const plots = {
  inputs: new Plot($("inputs-plot"), $("inputs-legend"), "in"),
  outputs: new Plot($("outputs-plot"), $("outputs-legend"), "out"),
};
const streamList = new StreamList({
  list: $("stream-list"),
  filter: $("filter"),
  note: $("streams-note"),
  choose: (name) => choose(name, true),
});

const streamStatus = new StreamStatus({ list: $("stream-status"), note: $("status-note") });
const forecast = new Forecast({
  select: $("forecast"),
  off: $("forecast-off"),
  note: $("forecast-note"),
  onRequest: refreshForecast,
  onChange: () => (page.fresh = true),
});
const dialog = new Dialog();
new Operations({ dialog, current: () => [page.model, chosen()], onDone: done });
const alertCard = new AlertCard({ choose: (name) => choose(name, true) });
new DriftCard(() => page.model);
const release = new ReleaseCard({ dialog, choose: (name) => choose(name, true), onTrial: () => page.all && watch() });

// ---- state of the service ------------------------------------------------------------------------------------

function showState(kind, message) {
  $("state").dataset.state = kind;
  text("state", message);
}

/** Read the models, readiness and metrics; called every two seconds, so that new models and restarts are detected. */
async function refresh() {
  try {
    const { models } = await getJson("v1/models");
    if (JSON.stringify(models) !== JSON.stringify(page.models)) await openService(models);
  } catch (problem) {
    if (problem.status === 401 || problem.status === 403) askForKey(problem.status);
    else showState("down", "The service does not respond");
    return;
  }
  const model = page.model;
  if (!model) return;
  await Promise.allSettled([
    get("readyz").then(({ ok }) => {
      if ($("state").dataset.state !== "waiting") showState(ok ? "ready" : "down", ok ? "Ready" : "Not ready");
    }),
    get("metrics").then(async (response) => showMetrics(response.ok ? read(await response.text(), model.name) : null)),
    page.refreshes++ % 5 || list(model),
    release.refresh(),
    alertCard.refresh(),
    readStatus(),
  ]);
}

async function list(model) {
  const found = await getJson(`v1/models/${encodeURIComponent(model.name)}/streams?limit=500`);
  if (model !== page.model) return;
  page.streams.list(found);
  readStatus();
}

async function openService(models) {
  page.models = models;
  $("key-form").hidden = true;
  $("main").hidden = false;
  fillPicker();
  const { version, durability, limits } = await getJson("v1/info");
  page.limits = limits;
  text("about", `version ${version} · durability ${durability}`);
}

function askForKey(status) {
  page.all?.close();
  page.one?.close();
  page.models = null; // the service is opened again once a key is accepted
  $("main").hidden = true;
  showState("down", "API key required");
  text("key-problem", hasKey() ? (status === 403 ? "This key has no permission to read streams." : "This key is not valid.") : "");
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  page.models = null;
  refresh();
});

function showMetrics(scrape) {
  const before = scrape && page.scrapes.get(scrape.process);
  if (scrape) page.scrapes.set(scrape.process, scrape);
  const buckets = scrape ? since(scrape.buckets, before?.buckets) : [];
  const ms = (share) => {
    const value = quantile(buckets, share) * 1000;
    return Number.isNaN(value) ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  };
  text("latency", ms(0.5));
  const hasSamples = buckets.at(-1)?.[1] > 0;
  text("latency-note", !scrape ? "this key cannot read metrics" : hasSamples ? `median; p99 ${ms(0.99)}` : "");
  text("replays", scrape ? number(scrape.replays) : "–");
  text("conflicts", scrape ? `retries, applied once; ${number(scrape.conflicts)} conflicts resolved` : "");
}

// ---- model and stream ----------------------------------------------------------------------------------------

function fillPicker() {
  const address = new URLSearchParams(location.hash.slice(1));
  const before = page.model?.name ?? address.get("model");
  const title = ({ name, version }) => (version > 1 ? `${name} · ${version}` : name);
  $("model").replaceChildren(...page.models.map((model) => new Option(title(model), model.name)));
  $("model").disabled = page.models.length < 2;
  const model = page.models.find(({ name }) => name === before) ?? page.models[0];
  if (!model) {
    text("empty-title", "No model is loaded");
    text("empty-text", "Put an exported model into the model folder, then send POST /v1/models/reload or restart the service.");
    $("curl").hidden = true;
    $("empty").hidden = false;
    return showState("ready", "Ready");
  }
  $("model").value = model.name;
  openModel(model, address.get("stream"));
}

$("model").addEventListener("change", () => openModel(page.models.find(({ name }) => name === $("model").value)));

function openModel(model, stream = null) {
  page.model = { ...model, outputs: model.outputs.filter(({ kind }) => kind !== "ignore") };
  page.streams = new Streams();
  page.perSecond = [0];
  page.scrapes.clear();
  $("empty").hidden = true;
  choose(stream, stream !== null);
  text("curl-line", curlLine(page.model, document.baseURI, hasKey()));
  text("model-facts", modelFacts(page.model));
  forecast.setModel(page.model);
  page.all?.close();
  page.all = null;
  release.setModel(page.model);
  alertCard.setModel(page.model);
  watch();
  list(page.model).catch(() => {}); // `refresh` reports a service that does not respond
}

function modelFacts({ name, inputs, outputs, bytes_per_stream: size, parity }) {
  const tensor = ({ name, dtype, shape }) => `${name} ${dtype}${shape.length ? ` [${shape.join(", ")}]` : ""}`;
  return [
    `${name}: ${inputs.map(tensor).join(", ")} → ${outputs.map(tensor).join(", ")}`,
    size != null && `${bytes(size)} of state per stream`,
    parity && `equal to ${parity.against} within ${parity.max_abs.toExponential(1)} over ${parity.steps} steps`,
  ].filter(Boolean).join("   ·   ");
}

function choose(name, byUser) {
  page.picked = byUser;
  if (page.chosen === name) return;
  page.chosen = name;
  page.fresh = name !== null;
  text("message", "");
  streamStatus.clear();
  forecast.clear();
  if (byUser) history.replaceState(null, "", `#${new URLSearchParams({ model: page.model.name, stream: name })}`);
  watchChosen();
  renderList();
  readStatus();
}

// ---- the chosen stream ---------------------------------------------------------------------------------------

const chosen = () => page.streams.byName.get(page.chosen);

/** Read the chosen stream's status from the service. */
async function readStatus() {
  if (chosen() && !page.paused && (await streamStatus.refresh(page.model, chosen()))) page.fresh = true;
}

function refreshForecast() {
  if (chosen() && !page.paused) forecast.refresh(page.model.name, chosen(), page.limits);
}

/** Show the message of an operation, and the stream that the operation created or changed. */
function done(message, changed = null) {
  if (changed) {
    page.streams.get(changed.stream).setStored(changed.step, null);
    choose(changed.stream, true);
    streamStatus.clear();
    forecast.clear();
    readStatus();
  }
  text("message", message);
}

// ---- the live feed -------------------------------------------------------------------------------------------

/** Watch all streams of the model. */
function watch() {
  page.all?.close();
  page.all = new Watch({ model: page.model.name }, { inputs: !page.crowded, candidate: release.hasCandidate }, {
    open: () => showState("ready", "Ready"),
    lost: (wait) => showState("waiting", `Connection lost; reconnecting in ${Math.max(1, Math.round(wait))} s`),
    refused: () => askForKey(401),
    message(message) {
      recordCommit(message);
      release.record(message);
      if (!page.crowded) addRows(message);
    },
  });
  watchChosen();
}

/** If there are too many live streams to receive all inputs, watch the chosen stream separately with its inputs. */
function watchChosen() {
  page.one?.close();
  page.one = null;
  if (!page.crowded || !page.chosen) return;
  const on = { open() {}, lost() {}, refused() {}, message: addRows };
  const include = { inputs: true, candidate: release.hasCandidate };
  page.one = new Watch({ model: page.model.name, stream: page.chosen }, include, on);
}

function recordCommit({ stream, step, outputs, gap }) {
  page.skipped += gap ?? 0;
  if (!stream) return;
  const rows = timesteps(outputs ?? {}, page.model.outputs);
  page.perSecond[page.perSecond.length - 1] += page.streams.get(stream).recordCommit(step, rows);
}

function addRows({ stream, step, outputs, inputs, candidate }) {
  if (!stream) return;
  const given = timesteps(inputs ?? {}, page.model.inputs);
  const [answered, tried] = [outputs, candidate?.outputs].map((one) => timesteps(one ?? {}, page.model.outputs));
  page.streams.get(stream).addRows(step, given, answered, tried);
  if (stream === page.chosen) page.fresh = true;
}

// ---- drawing -------------------------------------------------------------------------------------------------

function drawStream() {
  const stream = page.streams.byName.get(page.chosen);
  if (!stream || !page.fresh || page.paused) return;
  page.fresh = false;
  const { inputs, outputs } = page.model;
  text("stream-name", stream.name);
  const quiet = stream.seenAt > -Infinity ? "" : ", no timesteps since this page was opened";
  text("stream-facts", `step ${number(stream.step)}${quiet}`);
  drawPlot("inputs", inputs, stream.rows, false);
  drawPlot("outputs", outputs, stream.rows, outputs.every(({ name }) => areProbabilities(stream.outputs?.[name])));
  const best = mostProbable(stream.outputs, outputs);
  $("verdict").hidden = !best;
  if (best) {
    text("verdict-name", best.name);
    text("verdict-share", percent(best.share));
    $("verdict").className = `verdict${outputs.length === 1 ? ` ${lineClass("out", best.index)}` : ""}`;
  }
}

function drawPlot(which, specs, rows, shares) {
  const { series, total } = seriesOf(specs);
  const hasSecond = which === "outputs" && release.hasCandidate;
  plots[which].setSeries(series, shares, forecast.horizon > 0, hasSecond);
  const linesOf = (part) => series.map(({ tensor, index }) => rows.map((row) => row[part][tensor]?.[index] ?? null));
  const interval = forecast.after(rows, which, series);
  const columns = [rows.map(({ at }) => at), ...linesOf(which)];
  plots[which].draw(rows.map(({ step }) => step), columns, interval, hasSecond ? linesOf("candidate") : []);
  if (which === "outputs") text("candidate-note", hasSecond ? candidateNote(rows) : "");
  text(`${which}-note`, total > series.length ? `the first ${series.length} of ${number(total)}` : "");
}

function candidateNote(rows) {
  const isTried = rows.some(({ candidate }) => Object.keys(candidate).length);
  return isTried ? `dotted: the candidate, version ${release.release.candidate}` : "";
}

function renderList() {
  const { streams } = page;
  if (!page.model) return;
  const live = streams.live;
  const current = streams.byName.get(page.chosen);
  const lost = page.picked ? streams.isListed && !current : !current?.isLive;
  const [next] = streamList.sorted(streams);
  if (lost && next && next.name !== page.chosen) return choose(next.name, false);
  if (page.crowded !== live.length > MAX_WITH_INPUTS && Math.abs(live.length - MAX_WITH_INPUTS) > MAX_WITH_INPUTS / 5) {
    page.crowded = live.length > MAX_WITH_INPUTS;
    watch();
  }
  streamList.render(streams, page.model.outputs, page.chosen);
  $("view").hidden = !current;
  $("empty").hidden = streams.byName.size > 0;
  document.querySelector(".work").classList.toggle("nothing", !$("empty").hidden);
  const { skipped } = page;
  text("skipped", skipped ? `${number(skipped)} messages skipped: this page receives them too slowly.` : "");
  text("live", number(live.length));
  text("stored", `of ${streams.truncated ? "more than " : ""}${number(streams.byName.size)} stored`);
  document.title = live.length ? `${live.length} live · Stepwell` : "Stepwell";
}

function drawRate() {
  const seconds = page.perSecond;
  const whole = seconds.slice(0, -1);
  const recent = whole.slice(-3);
  if (recent.length) text("rate", number(Math.round(recent.reduce((a, b) => a + b, 0) / recent.length)));
  const max = Math.max(1, ...whole);
  const points = whole.map((n, i) => `${(120 * (i + SPARK_S - whole.length)) / (SPARK_S - 1)},${30 - (27 * n) / max}`);
  $("rate-line").setAttribute("points", points.join(" "));
  const floor = points.length ? ` 120,32 ${points[0].split(",")[0]},32` : "";
  $("rate-area").setAttribute("points", points.join(" ") + floor);
  seconds.push(0);
  if (seconds.length > SPARK_S + 1) seconds.shift();
}

$("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  page.fresh = true;
  $("pause").setAttribute("aria-pressed", String(page.paused));
  text("pause", page.paused ? "Resume" : "Pause");
});

$("filter").addEventListener("input", renderList);

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

function frame() {
  requestAnimationFrame(frame);
  drawStream();
}

requestAnimationFrame(frame);
setInterval(() => page.paused || renderList(), 250);
setInterval(drawRate, 1000);
setInterval(refreshForecast, 1000);
setInterval(() => $("key-form").hidden && refresh(), 2000);
refresh();
