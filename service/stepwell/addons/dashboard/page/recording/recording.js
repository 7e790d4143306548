// A CSV file that is dropped onto the page, or chosen, becomes timesteps of a stream, or of one for each id in a column. The file stays in the browser.

import { counted, number } from "../shapes.js";
import { columnsOf, idColumns, parseCsv } from "./csv_table.js";
import { sendRows } from "./sender.js";
import { idsOf } from "./stream_template.js";

const $ = (id) => document.getElementById(id);
const text = (id, value) => ($(id).textContent = value);

export class Recording {
  #recording = null; // {model, limits, table, columns}
  #file = null; // the one that is opened
  #isRunning = false;
  #isStopped = false;

  /** @param {{current: Function, onStream: Function}} on - `current` returns the model and the limits; `onStream` shows a stream */
  constructor(on) {
    this.on = on;
    const hasFile = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
    document.addEventListener("drop", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      document.body.classList.remove("dropping");
      this.#open(event.dataTransfer.files[0]);
    });
    $("send-csv").addEventListener("click", () => $("csv-file").click());
    $("csv-file").addEventListener("change", () => {
      if ($("csv-file").files.length) this.#open($("csv-file").files[0]);
      $("csv-file").value = ""; // so that the same file can be chosen again
    });
    $("csv-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run();
    });
    $("csv-ids").addEventListener("change", () => ($("csv-stream").disabled = $("csv-ids").value !== ""));
    $("csv-close").addEventListener("click", () => (this.#isRunning ? (this.#isStopped = true) : $("csv").close()));
    $("csv").addEventListener("close", () => (this.#isStopped = true));
  }

  async #open(file) {
    const [model, limits] = this.on.current();
    if (!model || this.#isRunning) return;
    text("csv-title", `Send ${file.name} to ${model.name}`);
    $("csv-stream").value = file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9._:@-]/g, "-").slice(0, 128) || "recording";
    this.#offerColumns([], undefined);
    $("csv-progress").hidden = true;
    text("csv-result", "");
    [this.#file, this.#recording] = [file, null];
    if (!$("csv").open) $("csv").showModal();
    try {
      const table = parseCsv(await file.text());
      if (file !== this.#file) return; // another one was opened meanwhile
      const columns = columnsOf(model.inputs, table.header);
      this.#recording = { model, limits, table, columns };
      const { others, ids } = idColumns(columns, table.header);
      this.#offerColumns(others, ids, table.header);
      const used = Object.entries(columns).map(([input, indexes]) => `${input}: ${indexes.map((i) => table.header[i]).join(", ")}`);
      text("csv-facts", `${counted(table.rows.length, "row")}, one timestep each. Columns of ${used.join("; ")}.`);
    } catch (problem) {
      if (file !== this.#file) return;
      text("csv-facts", "");
      text("csv-result", problem.message);
    }
    this.#showButtons();
  }

  async #run() {
    const { model, limits, table, columns } = this.#recording;
    const [column, existing, perSecond] = [$("csv-ids").value, $("csv-existing").value, Number($("csv-pace").value)];
    let names;
    try {
      names = column === "" ? idsOf($("csv-stream").value.trim(), table) : table.rows.map((row) => row[Number(column)]);
    } catch (problem) {
      return text("csv-result", problem.message);
    }
    const [stream, count] = [names.at(-1), new Set(names).size];
    Object.assign($("csv-progress"), { hidden: false, max: table.rows.length, value: 0 });
    [this.#isRunning, this.#isStopped] = [true, false];
    text("csv-result", "");
    this.#showButtons();
    const progress = (sent) => {
      $("csv-progress").value = sent;
      if (!this.#isStopped) text("csv-facts", `${number(sent)} of ${number(table.rows.length)} rows sent.`);
    };
    if (count === 1) this.on.onStream(stream);
    try {
      const options = { existing, perSecond, maxChunk: limits.max_chunk_steps };
      const { sent, step, isStopped } = await sendRows(model, names, { table, columns }, options, { progress, isStopped: () => this.#isStopped });
      const where = count === 1 ? `; ${stream} is at step ${number(step)}` : ` to ${counted(count, "stream")}`;
      text("csv-result", `${isStopped ? "Stopped: " : ""}${counted(sent, "row")} applied${where}.`);
      this.on.onStream(stream);
    } catch (problem) {
      text("csv-result", `${problem.sent ? `${counted(problem.sent, "row")} applied, then: ` : ""}${problem.message}`);
    }
    this.#isRunning = false;
    this.#showButtons();
  }

  /** Offer the columns that may name the stream of each row. */
  #offerColumns(others, ids, header = []) {
    const options = [new Option("one, with the id below", ""), ...others.map((i) => new Option(`one for each ${header[i]}`, String(i)))];
    $("csv-ids").replaceChildren(...options);
    $("csv-ids").value = ids ?? "";
    $("csv-stream").disabled = $("csv-ids").value !== "";
  }

  #showButtons() {
    $("csv-send").disabled = !this.#recording || this.#isRunning;
    text("csv-close", this.#isRunning ? "Stop" : "Close");
  }
}
