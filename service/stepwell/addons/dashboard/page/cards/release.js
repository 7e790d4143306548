// The release of the chosen model: its versions and their streams, the share, the comparison, promote and abort.

import { refill } from "../refill.js";
import { getJson, send } from "../service.js";
import { counted, flat, number } from "../shapes.js";

const HISTORY = 60; // points of the difference over time
const MOST_DIFFERENT = 5; // streams
const FORGET_MS = 60_000; // a stream without timesteps for so long is not listed
const STATES = { keep: "with the streams’ states", translate: "with translated states", reset: "from its initial state" };
const $ = (id) => document.getElementById(id);
const text = (node, value) => node.textContent !== value && (node.textContent = value);

/** The largest absolute difference between two rows of outputs; NaN if nothing can be compared. */
export function difference(outputs, candidate) {
  let largest = NaN;
  for (const [name, tensor] of Object.entries(outputs ?? {})) {
    const other = flat(candidate?.[name] ?? []);
    flat(tensor).forEach((value, i) => {
      const found = Math.abs(value - other[i]);
      if (!(found <= largest)) largest = Number.isNaN(found) ? largest : found;
    });
  }
  return largest;
}

/** The mean difference of the timesteps between two comparisons, over all outputs; null without new timesteps. */
export function meanBetween(before, now) {
  const steps = now.steps - before.steps;
  if (steps <= 0) return null;
  const total = ({ steps: n, outputs }) => Object.values(outputs).reduce((sum, { mean_abs: mean }) => sum + n * mean, 0);
  return Math.max(0, total(now) - total(before)) / steps / Math.max(1, Object.keys(now.outputs).length);
}

export class ReleaseCard {
  release = null;
  #differences = new Map(); // stream -> {largest, at}
  #history = [];
  #shown = "";

  /**
   * @param {{dialog: object, choose: Function, onTrial: Function}} on - `choose` gets a stream's name; `onTrial` is
   *   called when a trial starts or ends
   */
  constructor(on) {
    this.on = on;
    $("promote").addEventListener("click", () => this.#confirm("promote"));
    $("abort").addEventListener("click", () => this.#confirm("abort"));
  }

  /** Whether a candidate is tried. */
  get hasCandidate() {
    return this.release?.candidate != null;
  }

  setModel({ name }) {
    this.model = name;
    this.#differences.clear();
    this.#show(null);
    text($("release-message"), "");
  }

  /** Read the release; a service or a key that does not return it hides the card. */
  async refresh() {
    const model = this.model;
    const found = await getJson(this.#path()).catch(() => null);
    if (model === this.model) this.#show(found);
  }

  /** Record how much a stream's candidate differs, from an event. */
  record({ stream, outputs, candidate }) {
    if (!candidate) return;
    const largest = difference(outputs, candidate.outputs);
    if (!Number.isNaN(largest)) this.#differences.set(stream, { largest, at: performance.now() });
  }

  #path() {
    return `v1/models/${encodeURIComponent(this.model)}/release`;
  }

  #show(release) {
    const before = this.release;
    this.release = release;
    $("release").hidden = !release || (release.revision === 0 && release.versions.length < 2);
    const trial = (one) => JSON.stringify([one?.candidate, one?.mode, one?.started_at]);
    if (trial(before) !== trial(release)) {
      this.#history = [];
      this.#differences.clear();
      this.on.onTrial();
    }
    if (!release) return;
    this.#recordHistory(before, release);
    text($("release-facts"), facts(release));
    $("promote").hidden = !this.hasCandidate;
    $("abort").hidden = !this.hasCandidate && !canBeAborted(release);
    $("release-trial").hidden = !this.hasCandidate;
    $("release-percent").value = release.percent;
    text($("release-share"), this.hasCandidate ? shareText(release) : "");
    this.#showVersions(release);
    this.#showCompared(release);
    this.#showMostDifferent();
  }

  #recordHistory(before, { compared, started_at: startedAt }) {
    const mean = before?.started_at === startedAt ? meanBetween(before.compared, compared) : null;
    if (mean === null) return;
    this.#history.push(mean);
    if (this.#history.length > HISTORY) this.#history.shift();
  }

  #showVersions({ versions, candidate, mode }) {
    const total = Math.max(1, versions.reduce((sum, { streams }) => sum + streams, 0));
    const drawn = JSON.stringify([versions, candidate, mode]);
    if (drawn === this.#shown) return;
    this.#shown = drawn;
    $("release-versions").replaceChildren(
      ...versions.map(({ version, fingerprint, streams, status }) => {
        const item = make("li", "version");
        item.dataset.status = status;
        item.title = fingerprint;
        const bar = make("progress", "");
        Object.assign(bar, { max: total, value: streams });
        bar.setAttribute("aria-label", `share of the streams on version ${version ?? "?"}`);
        item.append(
          make("strong", "", `Version ${version ?? "?"}`),
          make("span", "status", mode === "shadow" && version === candidate ? mode : status),
          bar,
          make("span", "note", counted(streams, "stream")),
        );
        return item;
      }),
    );
  }

  #showCompared({ compared }) {
    const { steps, lost, fell_back: fellBack, non_finite: nonFinite, outputs } = compared;
    $("release-compared").hidden = !steps;
    const left = [[lost, "lost"], [fellBack, "fell back"], [nonFinite, "not finite"]].filter(([n]) => n);
    text($("release-steps"), [counted(steps, "timestep"), ...left.map(([n, what]) => `${number(n)} ${what}`)].join(", "));
    $("release-outputs").replaceChildren(
      ...Object.entries(outputs).flatMap(([name, found]) => [
        differenceRow(name, found),
        ...Object.entries(found.labels).map(([label, one]) => differenceRow(`${name}[${label}]`, one)),
      ]),
    );
    const errors = errorRows(compared.error);
    $("release-error").hidden = !errors.length;
    $("release-errors").replaceChildren(...errors.map(([name, ...cells]) => tableRow(name, cells)));
    const max = Math.max(...this.#history, Number.MIN_VALUE);
    const from = HISTORY - this.#history.length;
    const points = this.#history.map((mean, i) => `${(120 * (from + i)) / (HISTORY - 1)},${30 - (27 * mean) / max}`);
    $("release-line").setAttribute("points", points.join(" "));
    text($("release-now"), this.#history.length ? `mean difference now ${number(this.#history.at(-1))}` : "");
  }

  #showMostDifferent() {
    const now = performance.now();
    for (const [stream, { at }] of this.#differences) if (now - at > FORGET_MS) this.#differences.delete(stream);
    const sorted = [...this.#differences].sort(([, a], [, b]) => b.largest - a.largest).slice(0, MOST_DIFFERENT);
    $("release-most").hidden = !sorted.length || !this.hasCandidate;
    refill(
      $("release-streams"),
      sorted.map(([stream, { largest }]) => {
        const item = make("li", "");
        item.dataset.key = stream;
        const button = make("button", "", `${stream}  ${number(largest)}`);
        button.type = "button";
        button.addEventListener("click", () => this.on.choose(stream));
        item.append(button);
        return item;
      }),
    );
  }

  #confirm(what) {
    const { candidate, current, ended, revision } = this.release;
    const version = candidate ?? ended.candidate;
    const isPromotion = what === "promote";
    this.on.dialog.open({
      title: isPromotion ? `Promote version ${version}?` : `Abort version ${version}?`,
      text: isPromotion
        ? `Version ${version} becomes current instead of version ${current}. Every stream moves at its next step.`
        : `Streams of version ${version} continue with the version before. They have lost no timestep.`,
      label: "Reason",
      isOptional: true,
      yes: isPromotion ? "Promote" : "Abort",
      isDestructive: !isPromotion,
      act: async (why) => {
        const release = await send("POST", `${this.#path()}/${what}`, { revision, ...(why && { why }) });
        text($("release-message"), `Version ${version} was ${release.ended.how}.`);
        this.#show(release);
      },
    });
  }
}

function differenceRow(name, { max_abs: max, mean_abs: mean, p99_abs: p99, disagree }) {
  return tableRow(name, [...[max, mean, p99].map(number), disagree == null ? "–" : `${(100 * disagree).toFixed(2)}%`]);
}

function tableRow(name, cells) {
  const row = make("tr", "");
  row.append(Object.assign(make("th", "", name), { scope: "row" }), ...cells.map((value) => make("td", "", value)));
  return row;
}

/** The texts of the table of errors: output or label, both errors, their ratio, its interval, truths, the verdict. */
export function errorRows(error) {
  return Object.entries(error ?? {}).flatMap(([name, labels]) =>
    Object.entries(labels)
      .filter(([, { n }]) => n)
      .map(([label, { current, candidate, ratio, low, high, n }]) => [
        label === name ? name : `${name}[${label}]`,
        number(current),
        number(candidate),
        ratio === null ? "–" : number(ratio),
        low === null ? "–" : `${number(low)} to ${number(high)}`,
        number(n),
        low === null ? "–" : low > 1 ? "worse" : high < 1 ? "better" : "undecided",
      ]),
  );
}

function facts({ current, candidate, mode, take, ended, moved, left }) {
  const sentences = [`version ${current} is current`];
  if (candidate !== null) sentences.push(`version ${candidate} is tried: ${mode}, ${STATES[take]}`);
  if (ended) sentences.push(`version ${ended.candidate} was ${ended.how}${ended.why ? `: ${ended.why}` : ""}`);
  if (moved || left) sentences.push(`${counted(moved, "stream")} moved, ${number(left)} left`);
  return sentences.join(" · ");
}

function shareText({ percent, schedule }) {
  const next = schedule.length > 1 ? `, ${schedule.map(([s, share]) => `${share}% from ${s} s`).join(", ")}` : "";
  return `${percent}% of the streams${next}`;
}

/** Whether an abort may still undo a promotion; the service decides. */
const canBeAborted = ({ rollback, ended }) => rollback && ended?.how === "promoted" && Date.now() / 1000 < ended.at + 3600;

function make(tag, className, content = "") {
  return Object.assign(document.createElement(tag), { className, textContent: content });
}
