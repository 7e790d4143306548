// One chart with its legend: a stream's last timesteps and its forecast, drawn with uPlot; dragging zooms.

import { clock, number, percent, tickTexts } from "../shapes.js";
import { drawMarks, markedRows } from "./marks.js";

export const WINDOW = 300; // timesteps that a chart shows
const COLOURS = 6; // --in-1 .. --in-6, --out-1 .. and --cmp-1 .. in the style sheet; beyond that the lines are dashed
const DASHES = [undefined, [10, 4], [3, 3], [12, 3, 3, 3]]; // of compared streams, which are told apart without colours too
const BESIDE = { candidate: { dash: [2, 3] }, truth: { width: 5, opacity: "59" }, threshold: { dash: [8, 4], width: 1 } }; // further lines of each series
const AXES = 4; // for so many units there is one each; numbers of further units are drawn by the last one

export const theme = window.matchMedia("(prefers-color-scheme: dark)");
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The CSS class with the colour of series `i` of a palette. */
export const lineClass = (palette, i) => `${palette}-${(i % COLOURS) + 1}`;

const dashOf = (palette, i) => (palette === "cmp" ? DASHES[i % DASHES.length] : i >= COLOURS ? [5, 3] : undefined);

/** The CSS classes of the sample of a line in a legend. */
const swatchClass = (palette, i) =>
  `swatch ${lineClass(palette, i)}${palette === "cmp" ? ` dash-${i % DASHES.length}` : i >= COLOURS ? " dashed" : ""}`;

export class Plot {
  #chart = null;
  #buttons = [];
  #isDrawing = false; // whether this module sets the scale, not the user

  /**
   * @param {HTMLElement} container - the chart's parent, which determines its size
   * @param {HTMLElement} legend - the list for one button per series, which hides and shows the series
   * @param {"in" | "out" | "cmp"} palette - the chart's colours
   * @param {{onZoom: Function, onPoint: Function}} on - `onZoom` gets [first, last] positions or null; `onPoint` gets the
   *   index of the row that is pointed at, or null; `isAlone`: its positions are not those of the other charts
   */
  constructor(container, legend, palette, on) {
    Object.assign(this, { container, legend, palette, on, axis: "steps", label: "step", zoom: null });
    new ResizeObserver(() => this.#chart?.setSize(this.#size())).observe(container);
    theme.addEventListener("change", () => this.#restart());
  }

  /**
   * Replace the series: [{name}], whether they are probabilities, whether `draw` gets a forecast, and which further lines
   * it gets for each series: names of `BESIDE`.
   */
  setSeries(series, shares = false, hasForecast = false, beside = []) {
    const same = JSON.stringify(series) === JSON.stringify(this.series);
    if (same && shares === this.shares && hasForecast === this.hasForecast && String(beside) === String(this.beside)) return;
    Object.assign(this, { shares, hasForecast, beside, steps: [], columns: null });
    if (!same) Object.assign(this, { series, hidden: series.map(() => false) });
    this.#makeLegend();
    this.#restart();
  }

  /** Label the time axis with `steps` or with the `time` at which the page received each row. */
  setAxis(axis) {
    if (axis === this.axis) return;
    this.axis = axis;
    this.#restart();
  }

  /** The chart as an image, for a file; null before the first row. */
  get canvas() {
    return this.#chart?.ctx.canvas ?? null;
  }

  /**
   * Draw some rows of a stream.
   *
   * @param {object[]} rows - as `Stream.rows`; a row with the step null interrupts the lines
   * @param {Array[]} columns - the rows' positions on the time axis, then one array per series
   * @param {object} [forecast] - the forecast, as returned by `Forecast.after`
   * @param {Array[]} [beside] - the further lines: of each kind, one for each series
   * @param {string} [label] - what the positions are
   */
  draw(rows, columns, forecast = null, beside = [], label = "step") {
    if (label !== this.label) {
      this.label = label;
      this.#restart();
    }
    const steps = rows.map(({ step }) => step);
    this.last = rows.findLastIndex(({ step }) => step !== null); // the newest observed row
    this.times = rows.map(({ time }) => time);
    this.marks = markedRows(rows);
    [this.steps, this.columns] = forecast ? extended(steps, columns, forecast) : [steps, columns];
    if (this.hasForecast && !forecast) this.columns = [...columns, ...emptyColumns(3 * this.series.length, steps.length)];
    const more = this.columns[0].length - steps.length;
    this.columns = [...this.columns, ...beside.map((line) => [...line, ...Array(more).fill(null)])];
    columns = this.columns;
    this.container.classList.toggle("blank", columns.slice(1).every((line) => line.every((value) => value === null)));
    const [first, last] = [columns[0][0] ?? 1, columns[0].at(-1) ?? 1];
    this.#chart.setData(columns, false);
    const [min, max] = (this.range = this.zoom ?? [first, Math.max(last, first + 20)]);
    this.#isDrawing = true;
    this.#chart.setScale("x", { min, max });
    this.#isDrawing = false;
    this.#chart.redraw(false, true); // the tick marks change with the rows even if the scales do not
    this.#showValues(this.#chart.cursor.idx ?? this.last);
  }

  /** Positions of the tick marks on the time axis: round step numbers. */
  #marks() {
    const { steps = [], columns } = this;
    if (!columns) return [];
    const { width, scales } = this.#chart;
    const maxMarks = Math.max(2, width / 76);
    const { min, max } = scales.x;
    const n = Math.min(steps.length, max - min + 1);
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((size) => n / size <= maxMarks) ?? 1000;
    const isMarked = (step, i) => step !== null && (step % every === 0 || n === 1) && columns[0][i] >= min && columns[0][i] <= max;
    return steps.flatMap((step, i) => (isMarked(step, i) ? [columns[0][i]] : []));
  }

  /** The label of a tick mark: a step, or a time of day; a forecast has steps only. */
  #labelAt(position) {
    const row = position - this.columns[0][0];
    return this.axis === "time" ? (this.times[row] ? clock(this.times[row]) : "") : number(this.steps[row]);
  }

  #zoomed(chart, scale) {
    if (scale !== "x" || this.#isDrawing) return;
    const { min, max } = chart.scales.x;
    const width = this.columns?.[0].length ?? 0;
    this.on.onZoom(max - min < Math.max(width - 1, 20) ? [min, max] : null);
  }

  #size() {
    return { width: this.container.clientWidth, height: this.container.clientHeight };
  }

  #restart() {
    if (!this.series) return;
    this.#chart?.destroy();
    const [ink, grid] = [colour("--ink-soft"), colour("--grid")];
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const labels = (format) => (_, marks) => marks.map(format);
    const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, gap: 6 };
    this.#chart = new uPlot(
      {
        ...this.#size(),
        padding: [14, 20, 0, 0],
        legend: { show: false },
        cursor: { ...(!this.on.isAlone && { sync: { key: "stepwell", setSeries: false, scales: ["x", null] } }), drag: { x: true, y: false, dist: 6 }, points: { size: 6 } },
        scales: { x: { time: false }, ...this.#scales() },
        axes: [
          {
            ...axis, size: 26, grid: { show: false },
            label: this.axis === "time" ? "time of day" : this.label, labelSize: 16, labelGap: 0, labelFont: font,
            splits: () => this.#marks(),
            values: labels((position) => this.#labelAt(position)),
          },
          ...this.#units.map((unit, i) => ({
            ...axis,
            scale: scaleOf(i),
            side: i ? 1 : 3,
            ...(i && { grid: { show: false } }),
            ...(this.#units.length > 1 && { label: unit, labelSize: 16, labelGap: 0, labelFont: font }),
            size: (_, texts) => widthOf(texts),
            values: this.shares ? labels((v) => `${Math.round(v * 100)}%`) : ticks,
          })),
        ],
        series: [{}, ...this.series.map((_, i) => this.#line(i)), ...this.#linesAhead(), ...this.#linesBeside()],
        bands: [...(this.hasForecast ? this.series.map((_, i) => this.#band(i)) : []), ...this.#intervals()],
        hooks: {
          setCursor: [(chart) => this.#pointAt(chart.cursor.idx)],
          setScale: [(chart, scale) => this.#zoomed(chart, scale)],
          draw: [(chart) => drawMarks(chart, this.marks ?? [], { ink, font })],
        },
      },
      this.columns ?? emptyColumns(1 + this.series.length * ((this.hasForecast ? 4 : 1) + this.beside.length), 0),
      this.container,
    );
  }

  /** The forecast's series, after those of the data: the dashed medians, then both edges of the intervals. */
  #linesAhead() {
    if (!this.hasForecast) return [];
    const middle = this.series.map((_, i) => ({ ...this.#line(i), fill: undefined, dash: [4, 3], points: { show: false } }));
    const edge = middle.map(({ show, scale }) => ({ show, scale, width: 0, stroke: "transparent", points: { show: false } }));
    return [...middle, ...edge, ...edge.map((one) => ({ ...one }))];
  }

  #linesBeside() {
    return this.beside.flatMap((kind) => this.series.map((_, i) => this.#lineBeside(i, BESIDE[kind])));
  }

  #lineBeside(i, { dash, width, opacity = "" }) {
    const line = this.#line(i);
    return { ...line, fill: undefined, dash, width: width ?? line.width, stroke: `${line.stroke}${opacity}` };
  }

  #band(i) {
    const n = this.series.length;
    return { series: [1 + 3 * n + i, 1 + 2 * n + i], fill: `${colour(`--${lineClass(this.palette, i)}`)}2e` };
  }

  /** The units that have an axis; a chart without units, or of probabilities, has one axis. */
  get #units() {
    const units = this.shares ? [] : [...new Set(this.series.map(({ unit }) => unit ?? ""))];
    return units.length ? units.slice(0, AXES) : [""];
  }

  #scales() {
    return Object.fromEntries(this.#units.map((_, i) => [scaleOf(i), this.shares ? { range: [0, 1] } : {}]));
  }

  /** The intervals around predictions, between the lines of their ends. */
  #intervals() {
    return this.series.flatMap(({ low }, i) =>
      low === undefined ? [] : [{ series: [i + 1, low + 1], fill: `${colour(`--${lineClass(this.palette, this.#colourOf(i))}`)}24` }],
    );
  }

  /** The series whose colour a series has: its own, or that of what it is a bound of. */
  #colourOf(i) {
    return this.series[i].like ?? i;
  }

  #line(i) {
    const stroke = colour(`--${lineClass(this.palette, this.#colourOf(i))}`);
    const unit = this.#units.indexOf(this.series[i].unit ?? "");
    const scale = scaleOf(this.shares ? 0 : unit < 0 ? this.#units.length - 1 : unit);
    if (this.series[i].isBound) return { show: !this.hidden[i], scale, stroke, width: 1, dash: [8, 4], points: { show: false }, spanGaps: false };
    return {
      scale,
      show: !this.hidden[i],
      stroke,
      width: this.shares || this.palette === "cmp" ? 2 : 1.4,
      fill: this.shares ? `${stroke}1f` : undefined, // the colours are #rrggbb
      dash: dashOf(this.palette, i),
      points: { show: () => this.last === 0, size: 7 }, // a single timestep is a point, not a line
      spanGaps: false,
    };
  }

  #makeLegend() {
    this.#buttons = this.series.map(({ name, unit }, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "series";
      button.setAttribute("aria-pressed", "true");
      const part = (className, text = "") => {
        const span = document.createElement("span");
        span.className = className;
        span.textContent = text;
        button.append(span);
        return span;
      };
      part(`${swatchClass(this.palette, this.#colourOf(i))}${this.series[i].isBound ? " dashed" : ""}`);
      part("series-name", name);
      if (unit) button.querySelector(".series-name").append(` (${unit})`);
      const value = part("series-value");
      const bar = this.shares ? part(`bar ${lineClass(this.palette, i)}`) : null;
      button.addEventListener("click", () => {
        this.hidden[i] = !this.hidden[i];
        button.setAttribute("aria-pressed", String(!this.hidden[i]));
        for (let index = i + 1; index < this.#chart.series.length; index += this.series.length) {
          this.#chart.setSeries(index, { show: !this.hidden[i] });
        }
      });
      return { button, value, bar };
    });
    this.legend.replaceChildren(
      ...this.#buttons.map(({ button }) => {
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
  }

  #pointAt(index) {
    this.#showValues(index ?? this.last);
    this.on.onPoint(index ?? null);
  }

  /** The newest values in words, for screen readers. */
  get summary() {
    const words = this.#buttons.slice(0, 6).map(({ value }, i) => `${this.series[i].name} ${value.textContent}`);
    return words.join(", ");
  }

  /** Show the values of one row in the legend. */
  #showValues(index) {
    if (!this.columns) return;
    this.#buttons.forEach(({ value, bar }, i) => {
      const v = this.columns[i + 1]?.[index] ?? this.columns[i + 1 + this.series.length]?.[index];
      value.textContent = v == null ? "–" : this.shares ? percent(v) : number(v);
      if (bar) bar.style.setProperty("--share", v ?? 0);
    });
  }
}

const scaleOf = (i) => (i ? `y${i}` : "y");

const ticks = (_, marks, axis, space, distance) => tickTexts(marks, distance);

/** The width of an axis with these texts at its marks, in pixels. */
const widthOf = (texts) => Math.max(46, 12 + 7 * Math.max(0, ...(texts ?? []).map(({ length }) => length)));

const emptyColumns = (columns, rows) => Array.from({ length: columns }, () => Array(rows).fill(null));

/** Steps and columns with the forecast: after the series' columns those of the medians, low edges and high edges. */
function extended(steps, [positions, ...lines], { at, horizon, fans }) {
  const from = at - positions[0];
  const more = Math.max(0, from + horizon + 1 - steps.length);
  const counted = (values) => [...values, ...Array.from({ length: more }, (_, i) => values.at(-1) + i + 1)];
  const longer = lines.map((line) => [...line, ...Array(more).fill(null)]);
  const forecast = ["middle", "low", "high"].flatMap((which) =>
    fans.map((fan) => {
      const line = Array(steps.length + more).fill(null);
      fan?.[which].forEach((value, i) => (line[from + i] = value));
      return line;
    }),
  );
  return [counted(steps), [counted(positions), ...longer, ...forecast]];
}
