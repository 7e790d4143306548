"""`ReleaseOperator`: starts, changes, promotes, aborts and sweeps releases at random while the streams are stepped."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

from campaign.checker import MODEL, TENANT
from campaign.client import DEADLINE_S, RandomClient
from campaign.releases.folds import after
from campaign.releases.log import How, LoggedTrial, Mode
from campaign.stream_run import StreamRun
from campaign.streams import StreamDriver
from campaign.tally import Tally
from stepwell.store.keys import record_key
from tests.exactly_once.http import NoAnswerError

_TIMEOUT_S: Final = 5.0
_SETTLED: Final = 400  # streams whose next steps are checked after the last abort and promotion


class ReleaseOperator:
    """The one operator of a model's releases. Each request names the revision that it changes, so it is applied once.

    Attributes:
        log: The releases.
    """

    def __init__(self, driver: StreamDriver, rng: random.Random, tally: Tally) -> None:
        """Create an operator; nothing is requested yet.

        Args:
            driver: Steps the streams of the model.
            rng: Source of the random choices.
            tally: Counts the changes.
        """
        self.log = driver.log
        self._driver = driver
        self._client: RandomClient = driver.client
        self._rng = rng
        self._tally = tally
        self._revision = 0
        self._sweeps_from = 0.0

    async def start(self) -> None:
        """Make version 1 current, for every worker."""
        await self._request("PUT", "", {"current": 1})
        await self.wait_until_every_worker_follows()

    async def run(self, every_s: float, over: asyncio.Event, sweeps_after_s: float) -> None:
        """Change the release until the campaign is over; the last trial is ended.

        Args:
            every_s: Seconds between two changes, on average.
            over: Set when no further changes are to be made.
            sweeps_after_s: Seconds before the first sweep. From then on streams may move without an answer.
        """
        self._sweeps_from = self._now() + sweeps_after_s
        while not over.is_set():
            await asyncio.sleep(self._rng.uniform(0.2, 1.8) * every_s)
            await self._change()
        if self.log.running is not None:
            await self.finish("abort")

    async def check_settled_streams(self) -> None:
        """Step streams that sleep through one more trial that is aborted, and one that is promoted.

        There are no faults any more. So after the end of each, a stream that was a pair has to go on with that half.
        """
        runs = [run for run in self._driver.ended.values() if run.states][-_SETTLED:]
        for mode, how in (("ramp", "abort"), ("shadow", "promote")):
            await self.begin(mode, 100, existing=True)  # type: ignore[arg-type]
            await self._step_all(runs, is_settled=False)
            await self.finish(how)  # type: ignore[arg-type]
            await self.wait_until_every_worker_follows()
            await self._step_all(runs, is_settled=True)

    # ---------------------------------------------------------------- changes

    async def _change(self) -> None:
        running, dice = self.log.running, self._rng.random()
        if running is None:
            if dice < 0.2 and self.log.trials and self._now() > self._sweeps_from:
                await self._sweep()
            else:
                mode: Mode = self._rng.choices(("shadow", "ramp", "switch"), (3, 5, 2))[0]
                await self.begin(mode, self._rng.choice((5, 20, 50, 100)), existing=self._rng.random() < 0.9)
        elif dice < 0.3:
            await self.set_percent(self._rng.choice((1, 20, 50, 80, 100)), scheduled=self._rng.random() < 0.3)
        elif dice < 0.45:
            await self._set_mode(running)
        else:
            await self.finish(self._rng.choice(("promote", "abort")))

    async def begin(self, mode: Mode, percent: float, *, existing: bool) -> None:
        """Start a trial of the version that is not current."""
        current = next((trial.new for trial in reversed(self.log.trials) if trial.how == "promote"), 1)
        salt = f"t{len(self.log.trials)}"
        trial = LoggedTrial(current, 3 - current, salt, existing, percent, {mode: self._now()})
        self.log.trials.append(trial)
        body = {"candidate": trial.new, "mode": mode, "percent": percent, "existing": existing, "salt": salt}
        self._tally.releases[f"{mode} started"] += 1
        await self._request("PUT", "", body)

    async def set_percent(self, percent: float, *, scheduled: bool = False) -> None:
        """Change the candidate's share; `scheduled`: by a schedule that begins at 1 %."""
        trial = self.log.trials[-1]
        self._tally.releases["raised" if percent >= trial.percent else "lowered"] += 1
        trial.percent = max(trial.percent, percent)
        await self._request("PUT", "", {"percent": [[0, 1], [0.3, percent]] if scheduled else percent})

    async def _set_mode(self, trial: LoggedTrial) -> None:
        mode: Mode = self._rng.choices(("shadow", "ramp", "switch"), (4, 4, 1))[0]
        trial.modes.setdefault(mode, self._now())
        trial.percent = max(trial.percent, percent := self._rng.choice((50, 100)))
        self._tally.releases["mode changed"] += 1
        await self._request("PUT", "", {"candidate": trial.new, "mode": mode, "percent": percent})

    async def finish(self, how: How) -> None:
        """Promote or abort the candidate."""
        trial = self.log.trials[-1]
        trial.how, trial.ended = how, self._now()
        self._tally.releases["promoted" if how == "promote" else "aborted"] += 1
        await self._request("POST", f"/{how}", {})
        trial.known = self._now()

    async def _sweep(self) -> None:
        self.log.sweeps.append(self._now())
        self._tally.releases["swept"] += 1
        await self._request("POST", "/move", {}, is_change=False)

    async def _request(
        self, method: str, what: str, body: dict[str, Any], *, is_change: bool = True, port: int | None = None
    ) -> None:
        """Send a request until it is applied; the response has to show the newest revision.

        A change that is sent again finds the revision that it made itself, because nobody else changes the release.
        """
        named = {**body, "revision": self._revision} if is_change else body
        sent = self._now()
        while self._now() < sent + DEADLINE_S:
            try:
                status, document = await self._client.transports.http.request(
                    method,
                    port or self._port,
                    f"{self._client.transports.path}/release{what}",
                    named,
                    timeout=_TIMEOUT_S,
                )
            except NoAnswerError:
                status, document = 503, {}
            if status in (200, 202) or document.get("code") == "release_changed":
                self._revision += is_change
                if document["revision"] != self._revision:
                    self._tally.report("wrong", f"{method} {what} {named}: {document}; expected {self._revision}")
                return
            if status not in (429, 503):
                self._tally.report("refused", f"{method} release{what} {named}: {document}")
                return
            await asyncio.sleep(self._rng.uniform(0.01, 0.1))
        self._tally.report("unresolved", f"{method} release{what} {named}: outcome unknown after {DEADLINE_S:.0f} s")

    # ---------------------------------------------------------------- streams

    async def _step_all(self, runs: list[StreamRun], *, is_settled: bool, at_once: int = 32) -> None:
        """Step each stream once, and check its answer."""
        turn = asyncio.Semaphore(at_once)

        async def one(run: StreamRun) -> None:
            x = self._rng.randrange(2**40)
            async with turn:
                answer = await self._client.step(run.name, [x], seq=run.step + 1)
            if answer.status != 200:
                self._tally.report("refused", f"{run.name} at {run.step}: {answer.document}")
                return
            run.record([x], answer)
            operation, record = run.operations[-1], record_key(TENANT, MODEL, run.name)
            before, run.operations = run.states or frozenset(), []
            run.states = frozenset(after(before, operation, self.log, record, is_settled=is_settled))
            self._tally.steps += 1
            self._tally.moves += operation.version is not None
            if not run.states:
                detail = f"{run.name}: {operation} follows from none of {sorted(map(repr, before))[:4]}"
                self._tally.report("wrong", f"{detail} (settled: {is_settled})")

        await asyncio.gather(*(one(run) for run in runs if run.states))

    async def wait_until_every_worker_follows(self) -> None:
        """Read the release from every worker, which from then on steps by what it has shown."""
        for port in self._client.transports.ports:
            await self._request("GET", "", {}, is_change=False, port=port)

    @property
    def _port(self) -> int:
        return self._rng.choice(self._client.transports.ports)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
