// The chosen stream: its step, its charts with their axis, range and files, its most probable class.

import { keepInAddress } from "../address.js";
import { csvOf, pictureOf, save } from "../charts/chart_file.js";
import { lineClass, Plot } from "../charts/plot.js";
import { coverageNote, featureNames, styled, thresholdsOf } from "../charts/stages.js";
import { errorOf, Truth } from "../charts/truth.js";
import { areProbabilities, clock, counted, finite, mostProbable, number, percent, seriesOf } from "../shapes.js";

const SUMMARY_MS = 5000; // between two texts for screen readers
const TITLES = { inputs: "Inputs", outputs: "Predictions", error: "Error", weights: "Coefficients" };
const ERROR = [{ name: "error" }];
const MOST_WEIGHTS = 12;
const $ = (id) => document.getElementById(id);
const text = (id, value) => $(id).textContent !== value && ($(id).textContent = value);

export class StreamView {
  #plots;
  #truth = new Truth();
  #zoom = null; // first and last position on the time axis that the user has dragged to
  #rows = [];
  #summaryAt = -Infinity;

  /** @param {{forecast: Forecast, release: ReleaseCard, onChange: Function}} parts */
  constructor(parts) {
    Object.assign(this, parts);
    const on = { onZoom: (range) => this.#setZoom(range), onPoint: (index) => this.#showPoint(index) };
    this.#plots = {
      inputs: new Plot($("inputs-plot"), $("inputs-legend"), "in", on),
      outputs: new Plot($("outputs-plot"), $("outputs-legend"), "out", on),
      error: new Plot($("error-plot"), $("error-legend"), "out", on),
      weights: new Plot($("weights-plot"), $("weights-legend"), "in", { onZoom() {}, onPoint() {}, isAlone: true }),
    };
    keepInAddress($("truth"), "truth", () => this.onChange());
    $("truth-load").addEventListener("click", () => $("truth-file").click());
    $("truth-file").addEventListener("change", () => this.#readTruth());
    keepInAddress($("axis"), "axis", () => this.onChange());
    keepInAddress($("last"), "last", () => this.#setZoom(null));
    $("unzoom").addEventListener("click", () => this.#setZoom(null));
    $("save-png").addEventListener("click", () => this.#savePicture());
    $("save-csv").addEventListener("click", () => this.#saveTable());
  }

  /** Forget what belongs to the stream before. */
  clear() {
    this.#setZoom(null);
  }

  setModel(model) {
    this.#truth.setModel(model);
  }

  /** Draw a stream of a model. */
  draw(stream, model) {
    const { inputs, outputs } = model;
    Object.assign(this, { stream, model });
    this.#rows = this.#zoom ? stream.rows : stream.rows.slice(-Number($("last").value));
    text("stream-name", stream.name);
    text("stream-facts", `step ${number(stream.step)}${stream.seenAt > -Infinity ? "" : ", no timesteps since this page was opened"}`);
    const source = this.#truth.sourceOf(stream.name);
    const truth = source && $("truth").value === "on" ? this.#truth.of(stream.name, this.#rows) : null;
    $("truth-field").hidden = !source;
    this.#drawPlot("inputs", inputs, false);
    this.#drawPlot("outputs", outputs, outputs.every(({ name }) => areProbabilities(stream.outputs?.[name])), truth);
    text("truth-note", truth ? `wide: ground truth, from ${source}` : "");
    this.#drawError(truth);
    this.#drawWeights();
    const best = mostProbable(stream.outputs, outputs);
    $("verdict").hidden = !best;
    if (best) {
      text("verdict-name", best.name);
      text("verdict-share", `${percent(best.share)} probable`);
      $("verdict").className = `verdict${outputs.length === 1 ? ` ${lineClass("out", best.index)}` : ""}`;
    }
    this.#describe();
  }

  #drawPlot(which, specs, shares, truth = null) {
    const { forecast, release } = this;
    const rows = this.#rows;
    const plot = this.#plots[which];
    const { series: found, total } = seriesOf(specs);
    const series = which === "outputs" ? styled(found, this.model) : found;
    const hasCandidate = which === "outputs" && release.hasCandidate;
    const thresholds = which === "inputs" ? thresholdsOf(this.model, which) : {};
    const hasThreshold = Object.keys(thresholds).length > 0;
    plot.setAxis($("axis").value);
    plot.setSeries(series, shares, forecast.horizon > 0, [...(hasCandidate ? ["candidate"] : []), ...(hasThreshold ? ["threshold"] : []), ...(truth ? ["truth"] : [])]);
    const linesOf = (part) => series.map(({ tensor, index }) => rows.map((row) => finite(row[part][tensor]?.[index])));
    const interval = forecast.after(rows, which, series);
    const columns = [rows.map(({ at }) => at), ...linesOf(which)];
    plot.zoom = this.#zoom;
    const came = truth ? series.map(({ tensor, index }) => truth.map((row) => finite(row?.[tensor]?.[index]))) : [];
    const limits = hasThreshold ? series.map(({ tensor, index }) => rows.map((row) => finite(row.outputs[thresholds[tensor]]?.[index]))) : [];
    plot.draw(rows, columns, interval, [...(hasCandidate ? linesOf("candidate") : []), ...limits, ...came]);
    if (which === "outputs") text("coverage-note", coverageNote(this.model, rows));
    if (which === "outputs") text("candidate-note", hasCandidate ? candidateNote(rows, release.release.candidate) : "");
    text(`${which}-note`, noteOf(rows, which) || (total > series.length ? `the first ${series.length} of ${number(total)}` : ""));
  }

  /** Draw how far each prediction was from the ground truth; the chart is hidden without one. */
  #drawError(truth) {
    const errors = truth?.map((row, i) => errorOf(this.#rows[i].outputs, row)) ?? [];
    const known = errors.filter((error) => error !== null);
    $("error").hidden = !known.length;
    if (!known.length) return;
    const plot = this.#plots.error;
    plot.setAxis($("axis").value);
    plot.setSeries(ERROR);
    plot.zoom = this.#plots.outputs.range; // so that steps are below each other
    const rows = this.#rows.slice(0, errors.findLastIndex((error) => error !== null) + 1); // what comes next is not known yet
    plot.draw(rows, [rows.map(({ at }) => at), errors.slice(0, rows.length)]);
    const mean = known.reduce((sum, error) => sum + error, 0) / known.length;
    text("error-note", `mean ${number(mean)} over ${counted(known.length, "prediction")}`);
  }

  /** Draw the weights that were read with the stream's states; the chart is hidden without a readout. */
  #drawWeights() {
    const rows = this.stream.weights;
    const last = rows.at(-1)?.found ?? [];
    $("weights").hidden = !last.length;
    if (!last.length) return;
    const names = last.flatMap(({ name, values }) => {
      const features = featureNames(this.model, values.length);
      return features.map((feature) => ({ name: last.length > 1 ? `${name} ${feature}` : feature }));
    }).slice(0, MOST_WEIGHTS);
    const plot = this.#plots.weights;
    plot.setAxis($("axis").value);
    plot.setSeries(names);
    const lines = rows.map(({ found }) => found.flatMap(({ values }) => values));
    plot.draw(rows, [rows.map(({ at }) => at), ...names.map((_, i) => lines.map((values) => finite(values[i])))]);
    text("weights-note", "of the readout, read with the stored state");
  }

  async #readTruth() {
    const [file] = $("truth-file").files;
    $("truth-file").value = ""; // so that the same file can be chosen again
    if (!file || !this.stream) return;
    const { name } = this.stream;
    try {
      const rows = await this.#truth.read(name, file);
      text("message", `${counted(rows, "row")} of ground truth ${rows === 1 ? "was" : "were"} read for ${name}.`);
    } catch (problem) {
      text("message", problem.message);
    }
    this.onChange();
  }

  #setZoom(range) {
    if (range && this.stream?.rows.every(({ at }) => at < range[0] || at > range[1])) range = null; // nothing is there
    this.#zoom = range;
    this.#summaryAt = -Infinity;
    $("unzoom").hidden = !range;
    this.onChange();
  }

  /** Show the step and the time of the row that is pointed at. */
  #showPoint(index) {
    const row = index === null ? null : this.#rows[index];
    text("point-note", row?.step ? `at step ${number(row.step)}, received at ${clock(row.time)}` : "");
  }

  /** Describe the charts for screen readers, now and then. */
  #describe() {
    if (performance.now() - this.#summaryAt < SUMMARY_MS) return;
    this.#summaryAt = performance.now();
    for (const [which, plot] of Object.entries(this.#plots)) {
      const what = TITLES[which];
      $(`${which}-plot`).setAttribute("aria-label", `${what} of ${this.stream.name} over its last ${this.#rows.length} timesteps; now ${plot.summary}`);
    }
  }

  get #title() {
    return `${this.model.name} ${this.stream.name}`;
  }

  #fileName(ending) {
    return `${this.model.name}-${this.stream.name.replace(/[^A-Za-z0-9._-]/g, "_")}-step-${this.stream.step}.${ending}`;
  }

  async #savePicture() {
    const shown = Object.entries(TITLES).filter(([which]) => !$(which)?.hidden);
    const charts = shown.map(([which, title]) => ({ title, canvas: this.#plots[which].canvas }));
    save(await pictureOf(`${this.#title}, step ${number(this.stream.step)}`, charts), this.#fileName("png"));
  }

  #saveTable() {
    const { inputs, outputs } = this.model;
    const table = csvOf(this.stream.rows, ...[inputs, outputs].map((specs) => seriesOf(specs, Infinity).series));
    save(new Blob([table], { type: "text/csv" }), this.#fileName("csv"));
  }
}

/** Why a chart has no lines, if it has none. */
function noteOf(rows, which) {
  if (rows.some((row) => Object.keys(row[which]).length)) return "";
  return which === "inputs" ? "drawn from the next timestep on: the service keeps states, not inputs" : "drawn from the next timestep on";
}

function candidateNote(rows, version) {
  const isTried = rows.some(({ candidate }) => Object.keys(candidate).length);
  return isTried ? `dotted: the candidate, version ${version}` : "";
}
