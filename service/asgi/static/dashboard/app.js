// The dashboard: the service's status, its live streams, and charts of the selected stream. Works for any model.

import { keepInAddress, readAddress, writeAddress } from "./address.js";
import { makeCards } from "./cards/cards.js";
import { Fleet } from "./charts/fleet.js";
import { Forecast } from "./charts/forecast.js";
import { showNoModel, showWaiting } from "./empty.js";
import { get, getJson, pathOf, streamsPath } from "./feed.js";
import { listenForKeys } from "./keyboard.js";
import { LiveFeed } from "./live_feed.js";
import { read, Replicas } from "./metrics.js";
import { Recording } from "./recording/recording.js";
import { counted, modelFacts, timesteps } from "./shapes.js";
import { ServiceStatus } from "./status.js";
import { Dialog } from "./streams/dialog.js";
import { Operations } from "./streams/operations.js";
import { Search } from "./streams/search.js";
import { StreamList } from "./streams/stream_list.js";
import { StreamStatus } from "./streams/stream_status.js";
import { StreamView } from "./streams/stream_view.js";
import { Streams } from "./streams/streams.js";
import { Tiles } from "./tiles.js";

const LISTED = 500; // streams of the service's list that are loaded without a search
const SURVIVES = { memory: "the service", fsync: "the service and of the store", replica: "the service and of one store server" };
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

const page = {
  models: null,
  model: null,
  limits: {}, // the service's limits by setting name
  streams: new Streams(),
  chosen: null, // the name of the stream that is shown; there may be no such stream
  isMissing: false, // whether the service has no such stream
  paused: false,
  fresh: false, // whether the chosen stream has changed since it was drawn
  replicas: new Replicas(),
  refreshes: 0,
  skipped: 0, // messages that the service dropped because this page read too slowly
};

const status = new ServiceStatus({ onKey: () => ((page.models = null), refresh()), onDown: () => tiles.showNone() });
const tiles = new Tiles();
const live = new LiveFeed({
  hasCandidate: () => cards.release.hasCandidate,
  open: () => status.showReadiness().catch(() => {}),
  lost: (wait) => status.isDown || status.show("waiting", `Connection lost; reconnecting in ${Math.max(1, Math.round(wait))} s`),
  refused: () => askForKey(401),
  commit: recordCommit,
  rows: addRows,
});
const search = new Search({
  field: $("filter"),
  path: () => streamsPath(page.model.name),
  onType() {
    streamList.restart();
    writeAddress({ search: search.text });
    renderList();
  },
  onFound(streams) {
    page.streams.add(streams);
    renderList();
  },
});
const streamList = new StreamList({
  list: $("stream-list"), note: $("streams-note"), more: $("more"), search,
  choose: (name, isOpened) => choose(name, { isOpened }),
});
const fleet = new Fleet({ list: $("fleet-list"), note: $("fleet-note"), choose: openFromElsewhere });
const streamStatus = new StreamStatus({ list: $("stream-status"), note: $("status-note") });
const forecast = new Forecast({
  select: $("forecast"), off: $("forecast-off"), note: $("forecast-note"),
  onChange: () => (page.fresh = true),
});
const dialog = new Dialog();
new Operations({ dialog, current: () => [page.model, chosen()], onDone: done });
const cards = makeCards({ dialog, choose: openFromElsewhere, onTrial: () => live.restart() });
const view = new StreamView({ forecast, release: cards.release, onChange: () => (page.fresh = true) });
new Recording({ current: () => [page.model, page.limits], onStream: (name) => choose(name) });

// ---- state of the service ------------------------------------------------------------------------------------

/** Read the models, readiness and metrics; called every two seconds, so that new models and restarts are detected. */
async function refresh() {
  try {
    const { models } = await getJson("v1/models");
    status.up();
    if (JSON.stringify(models) !== JSON.stringify(page.models)) await openService(models);
  } catch (problem) {
    if (problem.status === 401 || problem.status === 403) askForKey(problem.status);
    else status.down();
    return;
  }
  const model = page.model;
  await Promise.allSettled([
    (live.isOpen || !model) && status.showReadiness(), // otherwise the watch shows when it reconnects
    model && get("metrics").then(async (response) => showMetrics(response.ok ? read(await response.text(), model.name) : null)),
    model && (page.refreshes++ % 5 || list(model)),
    model && cards.refresh(),
    model && readStatus(),
    model && page.isMissing && findChosen(),
  ]);
}

async function list(model) {
  const found = await getJson(`${streamsPath(model.name)}?limit=${LISTED}`);
  if (model !== page.model) return;
  page.streams.list(found);
  search.listed(found.cursor);
  if (page.chosen !== null && !chosen()?.isLive) await findChosen(); // it may have been deleted or have expired
  else readStatus();
}

async function openService(models) {
  page.models = models;
  status.open();
  fillPicker();
  const { version, durability, limits } = await getJson("v1/info");
  page.limits = limits;
  text("about", `version ${version} · confirmed steps survive a crash of ${SURVIVES[durability]}`);
}

function askForKey(code) {
  live.close();
  page.models = null; // the service is opened again once a key is accepted
  status.askForKey(code);
}

function showMetrics(scrape) {
  if (scrape) cards.refusals.add(page.replicas.add(scrape, performance.now() / 1000));
  tiles.showMetrics(scrape && page.replicas);
}

// ---- model and stream ----------------------------------------------------------------------------------------

function fillPicker() {
  const title = ({ name, version }) => (version > 1 ? `${name} · ${version}` : name);
  $("model").replaceChildren(...page.models.map((model) => new Option(title(model), model.name)));
  $("model").disabled = page.models.length < 2;
  openAddress(page.model?.name);
}

/** Open what the address names, and nothing else in its place; by default the model `name`, else the first. */
function openAddress(name = page.models[0]?.name) {
  const address = readAddress();
  const wanted = address.model || name;
  const model = page.models.find((one) => one.name === wanted);
  search.set(address.search);
  if (model) return openModel(model, address.stream || null);
  live.close();
  page.model = null;
  $("model").value = "";
  $("model").disabled = !page.models.length;
  showNoModel(wanted, page.models.length > 0);
}

$("model").addEventListener("change", () => {
  writeAddress({ model: $("model").value, stream: "", search: "" });
  openAddress();
});

window.addEventListener("hashchange", () => page.models && openAddress());

function openModel(model, stream) {
  $("model").value = model.name;
  if (JSON.stringify(model) === JSON.stringify(page.model?.description)) return choose(stream);
  page.model = { ...model, outputs: model.outputs.filter(({ kind }) => kind !== "ignore"), description: model };
  page.streams = new Streams();
  page.replicas = new Replicas();
  tiles.clear();
  search.clear();
  showWaiting(page.model);
  text("model-facts", modelFacts(page.model));
  forecast.setModel(page.model);
  live.close();
  cards.setModel(page.model);
  page.chosen = null;
  choose(stream);
  live.open(page.model.name);
  list(page.model).catch(() => {}); // `refresh` reports a service that does not respond
}

/**
 * Show a stream, or null for none yet.
 *
 * @param {{byUser?: boolean, isOpened?: boolean}} options - `byUser`: the address names it; `isOpened`: leave the view
 *   of all streams and, on a small screen, scroll to it
 */
function choose(name, { byUser = true, isOpened = false } = {}) {
  if (page.chosen !== name) {
    page.chosen = name;
    page.isMissing = false;
    page.fresh = name !== null;
    text("message", "");
    view.clear();
    streamStatus.clear();
    forecast.clear();
    live.choose(name);
    if (name !== null && !chosen()) findChosen();
  }
  if (byUser && name !== null) writeAddress({ model: page.model.name, stream: name });
  if (isOpened && $("show").value !== "streams") {
    $("show").value = "streams";
    $("show").dispatchEvent(new Event("change"));
  }
  renderList();
  readStatus();
  if (isOpened && matchMedia("(max-width: 900px)").matches) $("view").scrollIntoView({ block: "start" });
}

/** Show a stream that was selected outside the list. */
function openFromElsewhere(name) {
  choose(name, { isOpened: true });
  streamList.reveal(name);
}

/** Ask the service whether it has the chosen stream, which no event of the last seconds has named. */
async function findChosen() {
  const [model, name] = [page.model, page.chosen];
  try {
    const { step } = await getJson(pathOf(model.name, name));
    if (model !== page.model) return;
    page.streams.add([{ stream: name, step }]);
    page.fresh = true;
  } catch (problem) {
    const isOther = model !== page.model || name !== page.chosen || chosen()?.isLive;
    if (isOther || (problem.status !== 404 && problem.status !== 400)) return;
    page.streams.remove(name);
    page.isMissing = true;
  }
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

/** Show the message of an operation, and the stream that the operation created, changed or deleted. */
function done(message, changed = null) {
  if (changed?.isDeleted) {
    page.streams.remove(changed.stream);
    page.isMissing = page.chosen === changed.stream;
    renderList();
  } else if (changed) {
    const [stream, parent] = [page.streams.get(changed.stream), page.streams.byName.get(changed.parent)];
    if (parent) stream.inheritFrom(parent, changed.step);
    stream.setStored(changed.step, parent?.step === changed.step ? parent.outputs : null);
    choose(changed.stream);
    streamList.reveal(changed.stream);
    streamStatus.clear();
    forecast.clear();
    readStatus();
  }
  text("message", message);
}

// ---- the live feed -------------------------------------------------------------------------------------------

function recordCommit(message) {
  const { stream, step, outputs, gap } = message;
  cards.record(message);
  page.skipped += gap ?? 0;
  if (!stream) return;
  const rows = timesteps(outputs ?? {}, page.model.outputs);
  tiles.count(page.streams.get(stream).recordCommit(step, rows));
}

function addRows({ stream, step, outputs, inputs, candidate }) {
  if (!stream) return;
  const given = timesteps(inputs ?? {}, page.model.inputs);
  const [answered, tried] = [outputs, candidate?.outputs].map((one) => timesteps(one ?? {}, page.model.outputs));
  page.streams.get(stream).addRows(step, given, answered, tried);
  if (stream === page.chosen) page.fresh = true;
}

// ---- drawing -------------------------------------------------------------------------------------------------

/** Render the list and, with it, the chosen stream, so that both show the same step. */
function render() {
  if (page.paused) return;
  renderList();
  if (!page.fresh || !chosen() || $("view").hidden) return;
  page.fresh = false;
  view.draw(chosen(), page.model);
}

function renderList() {
  const { streams } = page;
  if (!page.model) return;
  const nLive = streamList.render(streams, page.model.outputs, page.chosen);
  if (page.chosen === null && streams.byName.size) return choose(streams.matching("").matches[0].name, { byUser: false });
  live.adapt(nLive);
  showPanels();
  const { skipped } = page;
  text("skipped", skipped ? `${counted(skipped, "message")} skipped: this page receives them too slowly.` : "");
  if (!status.isDown) tiles.showStreams(nLive, streams.byName.size, streams.isMore);
}

/** Show the chosen stream, that there is none of this name, the fleet, or that there are no streams yet. */
function showPanels() {
  const isFleet = $("show").value === "fleet";
  const hasStreams = page.streams.byName.size > 0 || search.text !== "";
  $("view").hidden = isFleet || !chosen();
  $("missing").hidden = isFleet || !page.isMissing || Boolean(chosen());
  $("fleet").hidden = !isFleet;
  $("empty").hidden = isFleet || hasStreams || page.isMissing;
  if (page.isMissing) text("missing-title", `There is no stream ${page.chosen}`);
  document.querySelector(".work").classList.toggle("nothing", !$("empty").hidden);
}

keepInAddress($("show"), "view", () => (drawFleet(), renderList()));
keepInAddress($("forecast"), "forecast", () => {
  forecast.restart();
  refreshForecast();
});

function drawFleet() {
  if ($("show").value === "fleet" && page.model && !page.paused) fleet.draw(page.streams, page.model.outputs, search.text);
}

$("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  page.fresh = true;
  $("pause").setAttribute("aria-pressed", String(page.paused));
  $("paused").hidden = !page.paused;
});

listenForKeys();
setInterval(render, 250);
setInterval(() => {
  tiles.drawRate(!status.isDown);
  drawFleet();
  refreshForecast();
}, 1000);
setInterval(() => status.needsKey || refresh(), 2000);
refresh();
