"""Streams that fall silent at random times while alert processes are killed: each raises one alarm, in time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np

from tests.addons.alert.alerts import SECRET, AlertProcess, WebhookReceiver, alerting, webhook
from tests.graphs import lstm, write_models
from tests.processes import ServiceProcess, service_process

SILENT_S = 5.0
LATE_S = 2.0
_PACE_S = 0.1
_END_S = 60.0


@dataclass
class SilenceResult:
    """What was found.

    Attributes:
        streams: The number of streams.
        kills: How often the process that evaluates the rules was killed.
        lateness: By stream, the seconds between its deadline and the arrival of its alarm.
        problems: What must not be.
    """

    streams: int
    kills: int
    lateness: dict[str, float]
    problems: list[str]

    def sentence(self) -> str:
        """Return the result in words."""
        late = np.array(sorted(self.lateness.values())) if self.lateness else np.zeros(1)
        return (
            f"{self.streams} streams fell silent, {self.kills} processes killed: {len(self.lateness)} alarms, "
            f"after the deadline by {np.median(late):.2f} s (median), {np.quantile(late, 0.99):.2f} s (p99), "
            f"{np.max(late):.2f} s (most)"
        )


def run_silence(
    folder: Path, *, streams: int, seconds: float, kill_every_s: float, seed: int, on_progress: Callable[[float], None]
) -> SilenceResult:
    """Step streams, each until a random time, and check the alarms.

    Args:
        folder: For the model, the store and the logs; its path must be short enough for a unix socket.
        streams: The number of streams.
        seconds: Within which they fall silent.
        kill_every_s: Seconds between two kills of the process that evaluates the rules.
        seed: Seed of all random choices.
        on_progress: Called with the seconds so far.
    """
    models = write_models(folder / "models", lstm)
    with service_process(models, folder / "s", "--drain-s", "0", "--history", "64") as service, webhook() as receiver:
        rules = (
            f'url = "{service.url}"\n[[rule]]\nname = "silent"\nmodel = "lstm"\nsilent_s = {SILENT_S}\n'
            f'[[to]]\nwebhook = "{receiver.url}"\nsecret = "{SECRET}"\n'
        )
        with alerting(folder, rules, "--data-dir", service.folder / "data", processes=2) as processes:
            run = _SilenceRun(service, receiver, processes, random.Random(seed))
            return run.run(streams, seconds, kill_every_s, on_progress)


@dataclass
class _SilenceRun:
    """One run.

    Attributes:
        service: The service.
        receiver: Gets the alarms.
        processes: Two alert processes.
        rng: Draws all random choices.
    """

    service: ServiceProcess
    receiver: WebhookReceiver
    processes: list[AlertProcess]
    rng: random.Random

    def run(
        self, streams: int, seconds: float, kill_every_s: float, on_progress: Callable[[float], None]
    ) -> SilenceResult:
        pace = threading.Event()  # never set
        self._wait_for_leader(pace)
        silent_at = {f"s.{i}": self.rng.uniform(1, seconds) for i in range(streams)}
        stepped: dict[str, float] = {}
        started, kills = time.monotonic(), 0
        with httpx2.Client(base_url=self.service.url, timeout=60) as http:
            while (now := time.monotonic() - started) < seconds:
                alive = [stream for stream, at in silent_at.items() if at > now]
                if alive:
                    body = {"streams": alive, "inputs": {"x": [[0.1, 0.2, 0.3, 0.4]] * len(alive)}}
                    http.post("/v1/models/lstm/step", json=body).raise_for_status()
                    stepped |= dict.fromkeys(alive, time.time())
                kills += self._kill(now >= (kills + 1) * kill_every_s)
                on_progress(now)
                pace.wait(_PACE_S)
        ends = time.monotonic() + _END_S
        while len(self.receiver.alarms()) < streams and time.monotonic() < ends:
            pace.wait(_PACE_S)
        return self._result(stepped, kills)

    def _wait_for_leader(self, pace: threading.Event) -> None:
        while not any(one.leads for one in self.processes):
            pace.wait(_PACE_S)

    def _kill(self, is_due: bool) -> bool:
        leaders = [one for one in self.processes if one.leads] if is_due else []
        for one in leaders[:1]:
            one.kill()
            one.start()
        return bool(leaders)

    def _result(self, stepped: dict[str, float], kills: int) -> SilenceResult:
        arrived: dict[str, float] = {}
        for alarm, at in zip(self.receiver.accepted, self.receiver.times, strict=True):
            arrived.setdefault(alarm["stream"], at)
        lateness = {stream: at - stepped[stream] - SILENT_S for stream, at in arrived.items()}
        counts = Counter(alarm["stream"] for alarm in self.receiver.alarms())
        problems = [f"{stream}: no alarm" for stream in stepped if stream not in arrived]
        problems += [f"{stream}: {count} alarms" for stream, count in counts.items() if count > 1]
        problems += [f"{stream}: {late:.2f} s late" for stream, late in lateness.items() if late > LATE_S]
        problems += [f"{stream}: {-late:.2f} s early" for stream, late in lateness.items() if late < -1]
        problems += [f"{self.receiver.unsigned} wrong signatures"] if self.receiver.unsigned else []
        return SilenceResult(len(stepped), kills, lateness, problems)
