"""`AlertStore`: what alert processes keep in the store, and the alarms that are raised.

All keys of a tenant share a hash tag, so that a Cluster keeps them in one slot and a commit is one script.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from stepwell.addons.between_workers.store_lease import StoreLease
from stepwell.errors import ServiceError
from stepwell.store.scripts import Script
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument
from stepwell.store.transport.retry import deadline

MAX_OUTBOX: Final = 1_000_000
"""Most alarms that wait for one target; the oldest ones beyond it are deleted."""

_COMMIT: Final = Script.of("alert_commit.lua", "stepwell.addons.alert")
_SCAN_COUNT: Final = 1000
_MOST_REFUSED: Final = 10_000


class AlertWrites(NamedTuple):
    """What one evaluation of the rules of a model changes.

    Attributes:
        model: The model.
        states: By stream: the encoded state, UTF-8; empty: it is deleted.
        raised: By member of the index: the alarm; empty: it is not raised any more.
        sent: The alarms to send to every target, in order.
    """

    model: str
    states: Mapping[str, bytes]
    raised: Mapping[str, bytes]
    sent: Sequence[bytes]


class RaisedPage(NamedTuple):
    """One page of raised alarms, encoded as JSON, and the cursor of the next page; None: there is none."""

    alarms: list[bytes]
    cursor: str | None


class AlertStore:
    """The state of one group of alert processes; one of them at a time has the lease, and writes.

    Attributes:
        lease: The entry of the lease.
    """

    def __init__(self, store: StateStore, tenant: str, group: str) -> None:
        """Create it."""
        self._store = store
        self._keys = f"{_prefix(tenant)}:{group}"
        self.lease = StoreLease(store, f"{self._keys}:lease")
        self._tenant = _prefix(tenant)

    async def load(self, model: str) -> dict[str, bytes]:
        """Return the encoded state of each stream of a model; raises as `commit` does."""
        states: dict[str, bytes] = {}
        cursor = b"0"
        while True:
            cursor, flat = await self._store.execute(
                deadline(), "HSCAN", self._states(model), cursor, "COUNT", _SCAN_COUNT
            )
            states |= {name.decode(): state for name, state in zip(flat[::2], flat[1::2], strict=True)}
            if int(cursor) == 0:
                return states

    async def commit(self, holder: str, call_id: str, writes: AlertWrites, targets: Sequence[str]) -> bool:
        """Write the result of an evaluation, if the holder still has the lease; the same call may be repeated.

        Args:
            holder: Who has the lease.
            call_id: Random, the same for every attempt. A model's calls follow one another.
            writes: What is changed.
            targets: The ids of all targets.

        Returns:
            Whether it was written.

        Raises:
            ServiceError: The store does not reply in time.
        """
        # As text: the decoder of Redis does not have MessagePack's type for bytes
        lists = ([(name, one.decode()) for name, one in each.items()] for each in (writes.states, writes.raised))
        body = msgspec.msgpack.encode((*lists, [one.decode() for one in writes.sent]))
        keys = [f"{self._keys}:lease", f"{self._keys}:call:{writes.model}", *_raised_keys(self._tenant)]
        keys += [self._states(writes.model), *map(self._outbox, targets)]
        arguments: list[Argument] = [len(keys), *keys, holder, call_id, MAX_OUTBOX, body]
        return bool(await self._store.run(_COMMIT, arguments, deadline=deadline()))

    async def unsent(self, target: str, after: str, count: int) -> list[tuple[str, bytes]]:
        """Return the oldest alarms that wait for a target, each with its entry id; raises as `commit` does.

        Args:
            target: The target's id.
            after: The entry id to continue after; empty: from the oldest one.
            count: Most alarms to return.
        """
        start = f"({after}" if after else "-"
        entries = await self._store.execute(deadline(), "XRANGE", self._outbox(target), start, "+", "COUNT", count)
        return [(entry.decode(), fields[1]) for entry, fields in entries]

    async def mark_sent(self, target: str, entries: Sequence[str]) -> None:
        """Delete alarms that a target has received; raises as `commit` does."""
        await self._store.execute(deadline(), "XDEL", self._outbox(target), *entries)

    async def set_aside(self, target: str, entry: str, body: bytes, reason: str) -> None:
        """Move an alarm that a target refuses into the stream `..:refused:TARGET`, which keeps about the last 10,000.

        It may be there twice, if the store's reply is lost; raises as `commit` does.
        """
        kept = self.refused_key(target)
        await self._store.execute(
            deadline(), "XADD", kept, "MAXLEN", "~", _MOST_REFUSED, "*", "alarm", body, "reason", reason
        )
        await self.mark_sent(target, [entry])

    def refused_key(self, target: str) -> str:
        """Return the key of the stream with the alarms that a target has refused."""
        return f"{self._keys}:refused:{target}"

    async def targets(self) -> list[str]:
        """Return the ids of the targets of the group's last leader; raises as `commit` does."""
        return [one.decode() for one in await self._store.execute(deadline(), "SMEMBERS", f"{self._keys}:targets")]

    async def set_targets(self, targets: Sequence[str]) -> None:
        """Store the ids of all targets, and delete what waits for others; raises as `commit` does."""
        removed = [one for one in await self.targets() if one not in targets]
        for one in removed:
            await self._store.delete(self._outbox(one), deadline=deadline())
            await self._store.delete(self.refused_key(one), deadline=deadline())
        if removed:
            await self._store.execute(deadline(), "SREM", f"{self._keys}:targets", *removed)
        if targets:
            await self._store.execute(deadline(), "SADD", f"{self._keys}:targets", *targets)

    def _states(self, model: str) -> str:
        return f"{self._keys}:states:{model}"

    def _outbox(self, target: str) -> str:
        return f"{self._keys}:outbox:{target}"


def raised_member(model: str, stream: str, group: str, rule: str, kind: str) -> str:
    """Return the member of the index of raised alarms: alarms are listed by model, then by stream."""
    return "\0".join((model, stream, group, rule, kind))


async def list_raised(store: StateStore, tenant: str, model: str | None, cursor: str | None, limit: int) -> RaisedPage:
    """Return the alarms of a tenant that are raised now, by model and stream.

    Args:
        store: The store.
        tenant: The owner of the streams.
        model: The model whose alarms are listed; None: all.
        cursor: The cursor that the previous page returned; None: the first page.
        limit: Most alarms to return.

    Raises:
        ServiceError: `bad_request`: the cursor was not returned by an earlier page; or an error of the store.
    """
    index, raised = _raised_keys(_prefix(tenant))
    first = f"[{model}\0".encode() if model is not None else b"-"
    last = f"({model}\1".encode() if model is not None else b"+"
    if cursor is not None:
        first = b"(" + _read_cursor(cursor)
    members = await store.execute(deadline(), "ZRANGEBYLEX", index, first, last, "LIMIT", 0, limit + 1)
    page = members[:limit]
    alarms = await store.execute(deadline(), "HMGET", raised, *page) if page else []
    more = base64.urlsafe_b64encode(page[-1]).decode() if len(members) > limit else None
    return RaisedPage([alarm for alarm in alarms if alarm is not None], more)


def _read_cursor(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ServiceError(
            "bad_request",
            f"`cursor` is {cursor[:64]!r}; expected the `cursor` that the previous page returned.",
            fix="Leave it out to start from the first page.",
        ) from exc


def _prefix(tenant: str) -> str:
    return f"swl:alerts:{{{tenant}}}"


def _raised_keys(prefix: str) -> tuple[str, str]:
    """Return the keys of the sorted index of raised alarms, and of the hash of their documents."""
    return f"{prefix}:index", f"{prefix}:raised"
