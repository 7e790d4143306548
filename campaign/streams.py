"""The manners in which clients step streams: each plays one stream to its end and holds it against the fold."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from campaign.checker import Operation, check
from campaign.client import PATIENCE_S, Answer, Client, Request
from tests.exactly_once.http import NoAnswerError

STEPS = 60  # of a stream, about
WRITERS = 3  # of a stream that is stepped by keys
COLUMNS = (8, 24)  # streams in a request in columns: few go one by one, many as a block


@dataclass
class Life:
    """One life of a stream, from its beginning or a reset on.

    Attributes:
        name: The stream's.
        operations: What was acknowledged.
        step: Where it has to stand.
        state_id: The newest one.
        start: Where it stood at the beginning.
        value: The fold's value at the beginning.
    """

    name: str
    operations: list[Operation] = field(default_factory=list)
    step: int = 0
    state_id: str | None = None
    start: int = 0
    value: int = 0

    @property
    def now(self) -> int:
        """The fold's value, as it was told."""
        return max(self.operations, key=lambda one: one.step).ys[-1] if self.operations else self.value

    def took(self, xs: Sequence[int], answer: Answer) -> None:
        """Note an acknowledged step or chunk."""
        document = answer.document
        ys = [y for row in document["outputs"]["y"] for y in (row if isinstance(row, list) else [row])]
        self.operations.append(Operation(tuple(xs), document["step"], tuple(ys), answer.sent, answer.answered))
        if document["step"] >= self.step:
            self.step, self.state_id = document["step"], document["state_id"]


class Player:
    """Plays streams, one after the other, until it is told to stop.

    Attributes:
        ended: Where each stream stood when its client left it.
    """

    def __init__(self, client: Client, rng: random.Random, prefix: str) -> None:
        """Prepare.

        Args:
            client: Asks.
            rng: Decides.
            prefix: Of the streams' names.
        """
        self.client = client
        self.tally = client.tally
        self.rng = rng
        self.ended: dict[str, tuple[int, str | None]] = {}
        self._names = (f"{prefix}-{n}" for n in itertools.count())
        self._stopping = False

    def stop(self) -> None:
        """Let the streams come to their ends."""
        self._stopping = True

    async def play(self) -> None:
        """Play streams until told to stop."""
        while not self._stopping:
            manner = self.rng.choice(list(MANNERS))
            await MANNERS[manner](self)
            self.tally.streams[manner] += 1

    async def look_again(self, at_once: int = 32) -> None:
        """See that every stream still stands where its client left it."""
        turn = asyncio.Semaphore(at_once)

        async def one(name: str, step: int, state_id: str | None) -> None:
            async with turn:
                found = await self.client.insist(Request(name, "", method="GET"))
            if (found.document.get("step"), found.document.get("state_id")) != (step, state_id):
                self.tally.blame("lost", f"{name}: left at step {step}, {state_id}; found {found.document}")

        await asyncio.gather(*(one(name, *where) for name, where in self.ended.items()))

    # ---------------------------------------------------------------- the manners

    async def by_seq(self) -> None:
        """Numbered timesteps; copies, gaps and conflicts on purpose, late copies."""
        life = Life(next(self._names))
        for _ in self._turns():
            xs = self._xs()
            if not await self._step(life, xs, seq=life.step + 1):
                return
            await self._trick(life)
            if self.rng.random() < 0.05 and len(life.operations) > 1:
                await self._late_copy(life)
        await self._end(life)

    async def by_seq_and_after(self) -> None:
        """As the client library does it; and resets, snapshots and forks, each the beginning of another life."""
        life, snapshot = Life(next(self._names)), None
        for _ in self._turns():
            named: dict[str, Any] = {"seq": life.step + 1}
            if life.state_id is not None:
                named["after"] = life.state_id
            if not await self._step(life, self._xs(), **named):
                return
            await self._trick(life)
            dice = self.rng.random()
            if dice < 0.02:
                snapshot = await self._snapshot(life)
            elif dice < 0.04:
                await self._check(life)
                life = await self._reset(life, snapshot)
            elif dice < 0.06:
                await self._end(life)
                life, snapshot = await self._fork(life), None
            if life.state_id is None:
                return
        await self._end(life)

    async def by_after(self) -> None:
        """By histories alone."""
        life = Life(next(self._names))
        for _ in self._turns():
            named = {"seq": 1} if life.state_id is None else {"after": life.state_id}
            if not await self._step(life, self._xs(), **named):
                return
        await self._end(life)

    async def by_keys(self) -> None:
        """Several clients on one stream, who know nothing of each other; late copies of whatever was answered."""
        life = Life(next(self._names))

        async def writer(number: int) -> None:
            for n in itertools.islice(self._turns(), STEPS // WRITERS):
                xs, key = self._xs(), f"{number}-{n}"
                answer = await self.client.step(life.name, xs, key=key, copies=self._copies())
                if not self._taken(life, xs, answer):
                    return
                if self.rng.random() < 0.1:
                    self.tally.tricks["late copies"] += 1
                    again = await self.client.step(life.name, xs, key=key)
                    if not again.same_as(answer) or not again.document.get("replayed"):
                        self.tally.blame("wrong", f"{life.name} {key}: told {answer.document}, then {again.document}")

        await asyncio.gather(*(writer(number) for number in range(WRITERS)))
        await self._end(life)

    async def in_columns(self) -> None:
        """Many streams in one request, numbered; what was not answered is sent again, row by row."""
        lives = [Life(next(self._names)) for _ in range(self.rng.choice(COLUMNS))]
        for _ in self._turns():
            if not await self._step_all(lives):
                return
        for life in lives:
            await self._end(life)

    # ---------------------------------------------------------------- helpers

    def _turns(self) -> Any:
        return itertools.takewhile(lambda _: not self._stopping, range(self.rng.randint(STEPS // 2, STEPS * 3 // 2)))

    def _xs(self, most: int = 5) -> tuple[int, ...]:
        length = 1 if self.rng.random() < 0.85 else self.rng.randint(1, most)
        return tuple(self.rng.randrange(-(2**40), 2**40) for _ in range(length))

    def _copies(self) -> int:
        return self.rng.choice((2, 3)) if self.rng.random() < 0.1 else 1

    async def _step(self, life: Life, xs: tuple[int, ...], **named: Any) -> bool:
        return self._taken(life, xs, await self.client.step(life.name, xs, copies=self._copies(), **named))

    def _taken(self, life: Life, xs: tuple[int, ...], answer: Answer) -> bool:
        """Note an answer; False: the step was refused, and nothing more can be said of the stream."""
        self.tally.seconds.append(answer.answered - answer.sent)
        if answer.status == 200:
            life.took(xs, answer)
            return True
        if answer.status:
            kind = "error" if answer.status >= 500 else "refused"
            self.tally.blame(kind, f"{life.name} at {life.step}, {xs}: {answer.document}")  # type: ignore[arg-type]
        return False

    async def _trick(self, life: Life) -> None:
        """Send something that has to be refused. It names the history, so that a late copy of it does no harm."""
        if self.rng.random() > 0.08:
            return
        newest = life.operations[-1]
        seq, code = self.rng.choice([
            (life.step + self.rng.randint(2, 9), "seq_gap"),
            (newest.first, "seq_conflict"),
            (self.rng.randint(1, newest.first), "seq_passed"),
        ])  # fmt: skip
        code = "seq_conflict" if seq == newest.first else code
        self.tally.tricks[code] += 1
        answer = await self.client.step(life.name, [2**41], seq=seq, after=life.state_id)
        found = (answer.code, answer.document.get("step"), answer.document.get("expected"))
        if found != (code, life.step, life.step + 1):
            self.tally.blame("wrong", f"{life.name} at {life.step}, seq {seq}: expected {code}, told {answer.document}")

    async def _late_copy(self, life: Life) -> None:
        """Send an older step once more."""
        older = self.rng.choice(life.operations[:-1])
        self.tally.tricks["late copies"] += 1
        answer = await self.client.step(life.name, older.xs, seq=older.first)
        if (answer.code, answer.document.get("applied")) != ("seq_passed", "yes"):
            self.tally.blame("wrong", f"{life.name}: a late copy of step {older.step} is told {answer.document}")

    async def _reset(self, life: Life, snapshot: Life | None) -> Life:
        """Go back to the beginning, or to a snapshot."""
        then = snapshot or Life(life.name)
        body: dict[str, Any] = {"after": life.state_id, **({"to": {"snapshot": "s"}} if snapshot else {})}
        return await self._begin(then, Request(life.name, "reset", body))

    async def _fork(self, life: Life) -> Life:
        """Go on on another stream; this one stays as it is."""
        other = Life(next(self._names), step=life.step, value=life.now)
        return await self._begin(other, Request(life.name, "fork", {"to": other.name, "after": life.state_id}))

    async def _snapshot(self, life: Life) -> Life | None:
        """Keep the stream as it is now; return the life that could begin there."""
        then = Life(life.name, step=life.step, value=life.now)
        body = {"after": life.state_id}
        made = await self._begin(then, Request(life.name, "snapshots/s", body, method="PUT"))
        return None if made.state_id is None else then

    async def _begin(self, then: Life, request: Request) -> Life:
        """Ask for what begins a life at a step; a life without a state id: it was refused."""
        self.tally.tricks[f"{request.what.partition('/')[0]}s".replace("ss", "s")] += 1
        answer = await self.client.insist(request)
        if answer.status != 200 or answer.document["step"] != then.step:
            self.tally.blame("refused", f"{request}: expected step {then.step}, told {answer.document}")
            return Life(then.name)
        return replace(then, operations=[], state_id=answer.document["state_id"], start=then.step)

    async def _step_all(self, lives: Sequence[Life]) -> bool:
        """Step every stream once; False: one was refused."""
        loop = asyncio.get_running_loop()
        rows = {life.name: (life, self._xs(most=1), life.step + 1) for life in lives}
        sent, in_doubt = loop.time(), set[str]()
        while rows:
            answers = await self._columns(list(rows.values()))
            for name in list(rows):
                document = answers.get(name, {"status": 503, "applied": "unknown"})
                answer = Answer(document.get("status", 200), document, sent, loop.time())
                if answer.status in (429, 503):
                    in_doubt |= {name} if document["applied"] != "no" else set()
                    continue
                self.tally.unknown += name in in_doubt
                self.tally.resolved += name in in_doubt
                life, xs, _ = rows.pop(name)
                if not self._taken(life, xs, answer):
                    return False
            if loop.time() > sent + PATIENCE_S:
                self.tally.blame("unresolved", f"{list(rows)}: nobody said what became of them")
                return False
            if rows:
                self.tally.asked_again += 1
                await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        return True

    async def _columns(self, rows: Sequence[tuple[Life, tuple[int, ...], int]]) -> dict[str, dict[str, Any]]:
        """Send one request in columns; return each row's answer or problem, nothing where none came."""
        doors = self.client.doors
        port = self.rng.choice(doors.ports)
        names = [life.name for life, _, _ in rows]
        body = {"streams": names, "inputs": {"x": [xs[:1] for _, xs, _ in rows]}, "seq": [seq for _, _, seq in rows]}
        by_http = self.rng.random() < 0.5
        try:
            if by_http:
                status, document = await doors.http.request("POST", port, f"{doors.path}/step", body, timeout=5)
            else:
                status, document = await doors.many(port).ask(body, timeout=5)
        except NoAnswerError:
            return {}
        if status != 200:
            return {name: {**document, "status": status} for name in names}
        self.tally.answers[f"columns by {'HTTP' if by_http else 'WebSocket'}"] += 1
        found = {}
        for at, name in enumerate(names):
            error = document["errors"].get(str(at)) if document.get("errors") else None
            row = {"step": document["step"][at], "state_id": document["state_id"][at]}
            found[name] = error or {**row, "outputs": {"y": document["outputs"]["y"][at]}}
        return found

    async def _check(self, life: Life, final: int | None = None) -> None:
        self.tally.steps += sum(len(one.xs) for one in life.operations)
        final = life.step if final is None else final
        self.tally.add(check(life.name, life.operations, final, value=life.value, start=life.start))

    async def _end(self, life: Life) -> None:
        """Ask where the stream stands, and check it all."""
        if life.state_id is None:
            return
        await self.client.doors.leave(life.name)
        found = await self.client.insist(Request(life.name, "", method="GET"))
        if found.status == 200 and found.document["step"] == life.step != 0:
            self.ended[life.name] = life.step, life.state_id
            if found.document["state_id"] != life.state_id:
                self.tally.blame("wrong", f"{life.name}: its history is {found.document}; expected {life.state_id}")
        await self._check(life, found.document.get("step", 0))


MANNERS: dict[str, Callable[[Player], Awaitable[None]]] = {
    "by seq": Player.by_seq,
    "by seq and after": Player.by_seq_and_after,
    "by after": Player.by_after,
    "by keys": Player.by_keys,
    "in columns": Player.in_columns,
}
