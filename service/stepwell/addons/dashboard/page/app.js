// The dashboard: the service's status, its live streams, and charts of the selected stream. Works for any model.

import { keepInAddress, readAddress, writeAddress } from "./address.js";
import { makeCards } from "./cards/cards.js";
import { Comparison } from "./charts/comparison.js";
import { Fleet } from "./charts/fleet.js";
import { Forecast } from "./charts/forecast.js";
import { showNoModel, showWaiting } from "./empty.js";
import { listenForKeys } from "./keyboard.js";
import { LiveFeed } from "./live_feed.js";
import { read } from "./metrics.js";
import { ModelPicker } from "./model_picker.js";
import { PageState } from "./page_state.js";
import { showPanels } from "./panels.js";
import { Recording } from "./recording/recording.js";
import { get, getJson, modelOf, streamsPath } from "./service.js";
import { counted, modelFacts } from "./shapes.js";
import { ServiceStatus } from "./service_status.js";
import { DefaultStream } from "./streams/default_stream.js";
import { Dialog } from "./streams/dialog.js";
import { addRows, recordCommit } from "./streams/events.js";
import { Operations } from "./streams/operations.js";
import { Search } from "./streams/search.js";
import { StreamList } from "./streams/stream_list.js";
import { StreamStatus } from "./streams/stream_status.js";
import { StreamView } from "./streams/stream_view.js";
import { Tiles } from "./tiles.js";

const LISTED = 500; // streams of the service's list that are loaded without a search
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

const page = new PageState();
const status = new ServiceStatus({ onKey: () => (Object.assign(page, { models: null, isReading: false }), refresh()), onDown: () => tiles.showNone("No response") });
const picker = new ModelPicker({
  select: $("model"),
  choose(name) {
    writeAddress({ model: name, stream: "", search: "" });
    openAddress();
  },
});
const tiles = new Tiles();
const live = new LiveFeed({
  hasCandidate: () => cards.release.hasCandidate,
  open: () => status.showReadiness().catch(() => {}),
  lost: (wait) => status.isDown || status.show("waiting", `Connection lost; reconnecting in ${Math.max(1, Math.round(wait))} s`),
  refused: () => askForKey(401),
  commit(event) {
    cards.record(event);
    page.skipped += event.gap ?? 0;
    tiles.count(recordCommit(page, event));
  },
  rows(event) {
    addRows(page, event);
    if (event.stream === page.chosen || comparison.names.includes(event.stream)) page.fresh = true;
  },
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
  choose: (name, isOpened) => (isOpened && $("show").value === "compare" ? comparison.toggle(name) : choose(name, { isOpened })),
});
const fleet = new Fleet({ list: $("fleet-list"), note: $("fleet-note"), choose: openFromElsewhere });
const comparison = new Comparison({ onChange: () => ((page.fresh = true), receiveShown()) });
const streamStatus = new StreamStatus({ list: $("stream-status"), note: $("status-note") });
const forecast = new Forecast({
  select: $("forecast"), off: $("forecast-off"), note: $("forecast-note"),
  onChange: () => (page.fresh = true),
});
const byDefault = new DefaultStream();
const dialog = new Dialog({ onLate: (message) => text("message", message) });
new Operations({ dialog, current: () => [page.model, chosen()], onDone: done });
const cards = makeCards({ dialog, choose: openFromElsewhere, onTrial: () => live.restart() });
const view = new StreamView({ forecast, release: cards.release, onChange: () => (page.fresh = true) });
new Recording({ current: () => [page.model, page.limits], onStream: (name) => choose(name) });

// ---- state of the service ------------------------------------------------------------------------------------

/** Read the models, readiness and metrics; called every two seconds, so that new models and restarts are detected. */
async function refresh() {
  if (page.isReading) return; // the client still repeats the request
  page.isReading = true;
  try {
    const { models } = await getJson("v1/models");
    status.up();
    if (JSON.stringify(models) !== JSON.stringify(page.models)) await openService(models);
  } catch (problem) {
    if (problem.code === "closed") return; // another key was entered
    if (problem.status === 401 || problem.status === 403) askForKey(problem.status);
    else status.down();
    return;
  } finally {
    page.isReading = false;
  }
  const { model } = page;
  page.streams.trim([page.chosen, ...comparison.names]); // also in a hidden tab, which still receives timesteps
  if (model && document.hidden) tiles.showStreams(page.streams.matching("").live, page.streams); // for the tab's title
  const reads = [(live.isOpen || !model) && status.showReadiness()]; // otherwise the watch shows when it reconnects
  if (!isStill()) reads.push(readMetrics(model), page.refreshes % 5 || list(model), page.refreshes++ % 2 || cards.refresh(), readStatus(), page.isMissing && findChosen());
  await Promise.allSettled(reads);
}

/** Whether nothing is read or drawn now: there is no model, the page is frozen, or nobody sees it. */
const isStill = () => !page.model || page.paused || document.hidden;

async function list(model) {
  const found = await getJson(`${streamsPath(model.name)}?limit=${LISTED}`);
  if (model !== page.model) return;
  page.streams.list(found);
  search.listed(found.cursor);
  if (page.chosen !== null && !chosen()?.isLive) await findChosen(); // it may have been deleted or have expired
  else readStatus();
}

async function openService(models) {
  const info = await getJson("v1/info");
  Object.assign(page, { models, limits: info.limits });
  status.open(info);
  picker.fill(models);
  openAddress(page.model?.name);
}

function askForKey(code) {
  live.close();
  page.models = null; // the service is opened again once a key is accepted,
  page.closeModel(); // and what the key before could read is no longer shown
  status.askForKey(code);
}

async function readMetrics(model) {
  const response = await get("metrics");
  const scrape = response.ok ? read(await response.text(), model.name) : null;
  if (model !== page.model) return;
  if (scrape) cards.refusals.add(page.replicas.add(scrape, performance.now() / 1000));
  tiles.showMetrics(scrape && page.replicas);
}

// ---- model and stream ----------------------------------------------------------------------------------------

/** Open what the address names, and nothing else in its place; by default the model `name`, else the first. */
function openAddress(name = page.models[0]?.name) {
  const address = readAddress();
  const wanted = address.model || name;
  const model = page.models.find((one) => one.name === wanted);
  search.set(address.search);
  if (model) return openModel(model, address.stream || null);
  live.close();
  page.closeModel();
  tiles.showNone(wanted ? `No model ${wanted}` : "No model");
  text("model-facts", "");
  picker.showNone();
  showNoModel(wanted, page.models.length > 0);
}

window.addEventListener("hashchange", () => page.models && openAddress());

function openModel(model, stream) {
  picker.show(model.name);
  if (JSON.stringify(model) === JSON.stringify(page.model?.description)) return choose(stream);
  page.openModel(model);
  tiles.clear();
  search.clear();
  showWaiting(page.model);
  text("model-facts", modelFacts(page.model));
  forecast.setModel(page.model);
  view.setModel(page.model);
  comparison.setModel(page.model);
  live.close();
  cards.setModel(page.model);
  byDefault.restart();
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
    receiveShown();
    if (name !== null && !chosen()) findChosen();
  }
  if (byUser && name !== null) {
    byDefault.end();
    writeAddress({ model: page.model.name, stream: name });
  }
  if (isOpened && $("show").value !== "streams") {
    $("show").value = "streams";
    $("show").dispatchEvent(new Event("change"));
  }
  renderList();
  drawShown();
  readStatus();
  if (isOpened && matchMedia("(max-width: 900px)").matches) $("view").scrollIntoView({ block: "start" });
}

const compared = () => ($("show").value === "compare" ? comparison.names : []);

/** Receive all of the chosen stream and of the compared ones. */
const receiveShown = () => live.choose([...new Set([page.chosen, ...compared()].filter(Boolean))]);

/** Show a stream that was selected outside the list. */
function openFromElsewhere(name) {
  choose(name, { isOpened: true });
  streamList.reveal(name);
}

/** Ask the service whether it has the chosen stream, which no event of the last seconds has named. */
async function findChosen() {
  const [model, name] = [page.model, page.chosen];
  try {
    const { step } = await modelOf(model.name).stream(name).status();
    if (model !== page.model) return;
    page.streams.add([{ stream: name, step }]);
    page.fresh = true;
  } catch (problem) {
    if (problem.status) cards.refusals.addOwn(problem.code);
    const isOther = model !== page.model || name !== page.chosen || chosen()?.isLive;
    if (isOther || (problem.status !== 404 && problem.code !== "bad_request")) return;
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
  if (!chosen() || !(await streamStatus.refresh(page.model, chosen()))) return;
  page.fresh = true;
  if (page.paused) drawShown(); // a stream that was chosen meanwhile
}

function refreshForecast() {
  if (chosen()) forecast.refresh(page.model.name, chosen(), page.limits);
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

// ---- drawing -------------------------------------------------------------------------------------------------

/** Render the list and, with it, the chosen stream, so that both show the same step. */
function render() {
  if (isStill() || (live.isCrowded && page.ticks++ % 2)) return;
  renderList();
  drawShown();
}

/** Draw the chosen stream, or the compared ones, if there is anything new. */
function drawShown() {
  if (!page.fresh) return;
  page.fresh = false;
  if (!$("compare").hidden) comparison.draw(page.streams.byName);
  else if (!$("view").hidden) view.draw(chosen(), page.model);
  else page.fresh = true;
}

function renderList() {
  const { streams } = page;
  if (!page.model) return;
  const nLive = streamList.render(streams, page.model.outputs, page.chosen, compared());
  const shown = byDefault.of(streams, page.chosen);
  if (shown !== page.chosen) return choose(shown, { byUser: false });
  live.adapt(nLive);
  const hasStreams = streams.byName.size > 0 || search.text !== "" || !streams.isListed; // or may have some
  showPanels({ view: $("show").value, name: page.chosen, isKnown: Boolean(chosen()), isMissing: page.isMissing, hasStreams });
  const { skipped } = page;
  text("skipped", skipped ? `At least ${counted(skipped, "timestep")} not received: the connection was lost, or this page was too slow.` : "");
  if (!status.isDown) tiles.showStreams(nLive, streams);
}

keepInAddress($("show"), "view", () => {
  page.fresh = true;
  if ($("show").value === "compare" && !comparison.names.length && chosen()) comparison.toggle(page.chosen);
  receiveShown();
  drawFleet();
  renderList();
});
keepInAddress($("forecast"), "forecast", () => {
  forecast.restart();
  refreshForecast();
});

function drawFleet() {
  if ($("show").value === "fleet" && !isStill()) fleet.draw(page.streams, page.model.outputs, search.text);
}

$("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  page.fresh = true;
  $("pause").setAttribute("aria-pressed", String(page.paused));
  $("paused").hidden = !page.paused;
});

document.addEventListener("visibilitychange", () => document.hidden || status.needsKey || refresh());
listenForKeys();
setInterval(render, 250);
setInterval(() => {
  if (isStill()) return;
  tiles.drawRate(!status.isDown);
  drawFleet();
  refreshForecast();
}, 1000);
setInterval(() => status.needsKey || refresh(), 2000);
refresh();
