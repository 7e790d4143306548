// The metrics that the page shows, parsed from /metrics (Prometheus text format), of all replicas behind the address.

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

const COUNTS = ["stepwell_replays_total", "stepwell_conflicts_total", "stepwell_refusals_total", "process_start_time_seconds"];

/** One scrape: a model's cumulative latency buckets, replays, conflicts, refusals by code, and the process's start time. */
export function read(text, model) {
  const samples = parse(text, ["stepwell_step_seconds_bucket", ...COUNTS]);
  const of = (name) => samples.filter((s) => s.name === name);
  const sum = (name) => of(name).reduce((total, s) => total + s.value, 0);
  const buckets = new Map();
  for (const s of of("stepwell_step_seconds_bucket")) {
    if (s.labels.model !== model) continue;
    const le = Number(s.labels.le.replace("+Inf", "Infinity"));
    buckets.set(le, (buckets.get(le) ?? 0) + s.value);
  }
  return {
    process: sum("process_start_time_seconds"),
    replays: sum("stepwell_replays_total"),
    conflicts: sum("stepwell_conflicts_total"),
    refusals: Object.fromEntries(of("stepwell_refusals_total").map(({ labels, value }) => [labels.code, value])),
    buckets: [...buckets].sort((a, b) => a[0] - b[0]),
  };
}

/** The increase of cumulative buckets between two scrapes of one process; zeros if they cannot be compared. */
export function since(now, before) {
  const isSame = before?.length === now.length;
  return now.map(([le, count], i) => [le, isSame ? Math.max(0, count - before[i][1]) : 0]);
}

const RECENT_S = 30; // a replica that was not read for so long is not part of the current latency

/**
 * The replicas behind one address, distinguished by their start time: a load balancer sends each request to any of them, so
 * their numbers must be added, not shown in turn.
 */
export class Replicas {
  #known = new Map(); // start time -> {now, before, at}

  /** Add a scrape, read at `at` (seconds); returns the refusals that are new in it, {code: count}. */
  add(scrape, at) {
    const known = this.#known.get(scrape.process);
    this.#known.set(scrape.process, { now: scrape, before: known?.now, at });
    if (!known) return {};
    const more = Object.entries(scrape.refusals).map(([code, count]) => [code, count - (known.now.refusals[code] ?? 0)]);
    return Object.fromEntries(more.filter(([, count]) => count > 0));
  }

  /** The number of replays or conflicts, over all replicas that were read. */
  total(name) {
    return [...this.#known.values()].reduce((sum, { now }) => sum + now[name], 0);
  }

  /** The latency buckets between the two newest scrapes of each replica, added. */
  recent(at) {
    const sums = new Map();
    for (const { now, before, at: readAt } of this.#known.values()) {
      if (at - readAt > RECENT_S) continue;
      for (const [le, count] of since(now.buckets, before?.buckets)) sums.set(le, (sums.get(le) ?? 0) + count);
    }
    return [...sums].sort((a, b) => a[0] - b[0]);
  }
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
