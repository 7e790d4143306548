"""`FleetReloads`: announces reloads to all workers on the same store, and waits until they have reloaded, too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stepwell.addons.between_workers.followed_value import FollowedValue
from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.fleet import keys
from stepwell.errors import ServiceError
from stepwell.store.transport.retry import deadline, replies_of

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)
_TOPIC: Final = "swl:fleet"  # on which reloads are announced
_TIMEOUT_S: Final = 2.0
_ALIVE_S: Final = 3.0  # a worker that has not written its time for so long is not waited for
LONGEST_RELOAD_S: Final = 60.0  # longest wait for one that reloads
_FORGOTTEN_S: Final = 300.0  # after twice as long, a silent worker's entry is deleted by others
_POLL_S: Final = 0.05


class Announcement(NamedTuple):
    """The newest reload of any worker.

    Attributes:
        id: Random.
        loaded: `name/version` of the models that it has loaded.
    """

    id: str
    loaded: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes that the store keeps."""
        return json.dumps({"id": self.id, "loaded": self.loaded}).encode()

    @classmethod
    def decode(cls, value: bytes) -> Announcement:
        """Return the announcement; one that cannot be decoded has its bytes as the id."""
        try:
            document = json.loads(value)
            return cls(str(document["id"]), tuple(map(str, document["loaded"])))
        except (ValueError, KeyError, TypeError):
            return cls(value[:64].hex())


class FollowedReload(NamedTuple):
    """How the workers have followed an announcement.

    Attributes:
        late: The number of workers that have not reloaded in time.
        loaded: `name/version` of the models that those in time have loaded, each once.
    """

    late: int
    loaded: tuple[str, ...]


class FleetReloads:
    """The newest reload is a value in the store; every worker reads it each second, and when a message arrives.

    A worker writes into a hash of the store which reload it has done, what it has loaded, and which it is doing. It
    does what it announces once more itself: the announcement may have replaced another one that it had not read yet.

    Attributes:
        lost_at: When the store was last found to have lost what this worker wrote before, Unix time; None: never.
    """

    def __init__(self, store: StateStore, follow: Callable[[Announcement], Awaitable[Sequence[str]]]) -> None:
        """Create it; `start` reads the store for the first time.

        Args:
            store: The store that all replicas share.
            follow: Does what was announced, and returns `name/version` of the models that it has loaded.
        """
        self.lost_at: float | None = None
        self._store = store
        self._follow = follow
        self._followed = FollowedValue(
            StorePubSub(store.transport), _TOPIC, self.look, "Following the reloads of other replicas"
        )
        self._worker = secrets.token_hex(8)
        self._seen: str | None = None
        self._loaded: Sequence[str] = ()  # by the announcement that it has followed last
        self._doing = ""  # the id of the announcement that it follows just now
        self._unannounced: Announcement | None = None  # as the store did not reply
        self._signed_in_at = -math.inf  # on the monotonic clock

    async def start(self) -> None:
        """Subscribe, and read the newest announcement; call it before the models are loaded for the first time.

        Call `look` once they are: the worker then serves nothing that others have reloaded meanwhile.
        """
        await self._followed.subscribe()
        try:
            self._seen = (await self._read()).id
        except ServiceError as exc:  # the first look reads it, and reloads once more
            _log.warning("Reloads of other replicas are not followed yet: %s", exc)

    async def run(self) -> None:
        """Follow the announcements until it is cancelled."""
        await self._followed.run()

    async def announce(self, loaded: Sequence[str]) -> str:
        """Announce a reload that this worker has done, and return its id.

        Args:
            loaded: `name/version` of the models that it has loaded.

        Raises:
            StoreUnavailableError: The store did not reply; it is announced once it does.
        """
        earlier = () if self._unannounced is None else self._unannounced.loaded
        announcement = self._unannounced = Announcement(secrets.token_hex(8), (*earlier, *loaded))
        await self._announce(announcement)
        return announcement.id

    async def wait_for_workers(self, announced: str) -> FollowedReload:
        """Wait until all workers have done an announced reload, and return what they did.

        Raises:
            StoreUnavailableError: The store did not reply.
        """
        until = deadline(LONGEST_RELOAD_S)
        while (followed := await self._followed_by(announced)).late:
            if asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(_POLL_S)
        return followed

    async def unloaded(self) -> frozenset[str]:
        """Return the names of the models that are not to be served.

        Raises:
            StoreUnavailableError: The store did not reply.
        """
        flat: list[bytes] = await self._execute(("HGETALL", keys.UNLOADED))
        return frozenset(name.decode() for name in flat[::2])

    async def set_unloaded(self, name: str, *, unloaded: bool) -> None:
        """Set whether a model is not to be served; workers follow with their next reload.

        Raises:
            StoreUnavailableError: The store did not reply.
        """
        command = ("HSET", keys.UNLOADED, name, "") if unloaded else ("HDEL", keys.UNLOADED, name)
        await self._execute(command)

    async def close(self) -> None:
        """Sign off, and close the connection."""
        await self._followed.close()
        try:
            await self._execute(("HDEL", keys.WORKERS, self._worker))
        except ServiceError:
            return

    async def look(self) -> None:
        """Announce what could not be announced yet, and do what was announced since the last look."""
        with contextlib.suppress(ServiceError):  # the store does not reply: readiness reports it
            if self._unannounced is not None:
                await self._announce(self._unannounced)
            announcement = await self._read()
            if announcement.id == self._seen:
                return
            self._doing = announcement.id
            try:
                await self._execute(self._sign_in())
                self._loaded = await self._follow(announcement)
                self._seen = announcement.id
            finally:
                self._doing = ""
            await self._execute(self._sign_in())

    async def _announce(self, announcement: Announcement) -> None:
        await self._execute(("SET", keys.RELOAD, announcement.encode()))
        if self._unannounced is announcement:
            self._unannounced = None
        await self._followed.announce(announcement.id)

    async def _read(self) -> Announcement:
        """Return the newest announcement; if the store has none, make one that changes nothing."""
        [value, is_new] = await self._execute_all(("GET", keys.RELOAD), self._sign_in())
        silent_s, self._signed_in_at = time.monotonic() - self._signed_in_at, time.monotonic()
        if is_new and silent_s < _FORGOTTEN_S:
            self.lost_at = time.time()
            _log.error(
                "The store has lost data: it was emptied, or restarted with an older file. The models of the models "
                "folders are served, and artifacts that are gone are stored again before the first stream needs them"
            )
        if value is None:
            own = Announcement(self._seen or secrets.token_hex(8))
            [_, value] = await self._execute_all(("SET", keys.RELOAD, own.encode(), "NX"), ("GET", keys.RELOAD))
        return Announcement.decode(value or b"")

    def _sign_in(self) -> tuple[Any, ...]:
        state = " ".join([f"{time.time():.3f}", self._seen or "", self._doing, *self._loaded])
        return ("HSET", keys.WORKERS, self._worker, state.rstrip())

    async def _followed_by(self, announced: str) -> FollowedReload:
        flat: list[bytes] = await self._execute(("HGETALL", keys.WORKERS))
        late, dead, found = 0, [], dict[str, None]()
        for worker, value in zip(flat[::2], flat[1::2], strict=True):
            at, seen, doing, *loaded = (*value.decode().split(" "), "", "")
            silent_s = time.time() - float(at)
            if silent_s > 2 * _FORGOTTEN_S:
                dead.append(worker)
            elif seen == announced:
                found |= dict.fromkeys(filter(None, loaded))
            elif silent_s <= (2 * LONGEST_RELOAD_S if doing else _ALIVE_S):
                late += 1
        if dead:
            await self._execute(("HDEL", keys.WORKERS, *dead))
        return FollowedReload(late, tuple(found))

    async def _execute(self, command: tuple[Any, ...]) -> Any:
        [reply] = await self._execute_all(command)
        return reply

    async def _execute_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        return await replies_of(self._store.transport, commands, deadline=deadline(_TIMEOUT_S))
