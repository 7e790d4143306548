// The metrics that the page shows, parsed from /metrics (Prometheus text format).

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;

/** Parse to [{name, labels, value}]; only names that begin with one of the prefixes. */
function parse(text, prefixes) {
  const samples = [];
  for (const line of text.split("\n")) {
    if (!prefixes.some((prefix) => line.startsWith(prefix))) continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const pairs = (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g);
    const labels = Object.fromEntries([...pairs].map(([, label, value]) => [label, value]));
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

const COUNTS = ["stepwell_replays_total", "stepwell_conflicts_total", "process_start_time_seconds"];

/** A model's metrics in one scrape: cumulative latency buckets, replays, conflicts, and the process's start time. */
export function read(text, model) {
  const samples = parse(text, ["stepwell_step_seconds_bucket", ...COUNTS]);
  const sum = (name) => samples.filter((s) => s.name === name).reduce((total, s) => total + s.value, 0);
  const buckets = new Map();
  for (const s of samples) {
    if (s.name !== "stepwell_step_seconds_bucket" || s.labels.model !== model) continue;
    const le = Number(s.labels.le.replace("+Inf", "Infinity"));
    buckets.set(le, (buckets.get(le) ?? 0) + s.value);
  }
  return {
    process: sum("process_start_time_seconds"),
    replays: sum("stepwell_replays_total"),
    conflicts: sum("stepwell_conflicts_total"),
    buckets: [...buckets].sort((a, b) => a[0] - b[0]),
  };
}

/** The buckets' increase between two scrapes of one process; the later buckets if the scrapes cannot be compared. */
export function since(now, before) {
  if (!before || before.length !== now.length) return now;
  const delta = now.map(([le, count], i) => [le, count - before[i][1]]);
  const monotone = delta.every(([, count], i) => count >= (i ? delta[i - 1][1] : 0));
  return monotone && delta.at(-1)?.[1] > 0 ? delta : now;
}

/** The quantile of a cumulative histogram at `share`, in seconds; linearly interpolated inside a bucket. */
export function quantile(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  const rank = share * total;
  let [low, below] = [0, 0];
  for (const [le, count] of buckets) {
    if (count >= rank && le === Infinity) return low;
    if (count >= rank) return low + ((le - low) * (rank - below)) / Math.max(count - below, 1e-9);
    [low, below] = [le, count];
  }
  return low;
}
