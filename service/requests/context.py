"""`AppContext`: what every route needs, made once per process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from service.codec import RequestDecoder
from service.codec.oip import InferCodec
from service.engine.engine import Engine
from service.errors import ServiceError
from service.metrics import Metrics
from service.models.registry import ReloadReport, ServedModel
from service.requests.api_keys import ApiKeys, Caller, Scope
from service.settings import is_loopback
from service.store.checks.safety import SafetyMonitor

if TYPE_CHECKING:
    from service.settings import Settings


# What moves streams is counted by its timesteps, in the engine; and who looks at the service may always look.
_RATE_LIMITED_SCOPES: Final[frozenset[Scope]] = frozenset({"read", "admin", "models"})


class AppContext:
    """What every route needs.

    Attributes:
        settings: The knobs.
        keys: The API keys in force.
        metrics: Counts requests and refusals.
        engine: Moves streams; there from the start of the application's life to its end.
        reload: Reloads the models, in every worker; there as long as the engine is.
        safety: Whether the store's settings keep what is promised; there as long as the engine is.
        websockets: Open WebSockets of this process.
        websockets_of: Those of each tenant.
        ready: What the last look at readiness found.
        leaving: This process is about to end: it is not ready, and answers ask for other connections.
    """

    def __init__(self, settings: Settings, keys: ApiKeys, metrics: Metrics) -> None:
        """Begin without an engine."""
        self.settings = settings
        self.api_keys = keys
        self.metrics = metrics
        self.engine: Engine
        self.reload: Callable[[], Awaitable[ReloadReport]]
        self.safety: SafetyMonitor
        self.websockets = 0
        self.websockets_of: Counter[str] = Counter()
        self.ready = False
        self.draining = False
        self._decoders: dict[tuple[str, int], RequestDecoder] = {}
        self._only_local = not keys.required and is_loopback(settings.host)  # nothing else guards it
        self._counts_requests = settings.tenant_rate is not None
        self._infer_codecs: dict[tuple[str, int], InferCodec] = {}
        self._origins = {origin.rstrip("/").lower() for origin in settings.allowed_origins}

    def authenticate(self, authorization: str | None, scope: Scope) -> Caller:
        """Return who calls, once it is sure that this is allowed.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        caller = self.api_keys.caller(authorization)
        caller.check_scope(scope)
        return caller

    def authenticate_and_count(self, authorization: str | None, scope: Scope) -> Caller:
        """Return who sends a request, once it is sure that this is allowed; it is counted for its tenant's rate.

        Raises:
            ServiceError: `unauthenticated`, `forbidden`, or `rate_limited`.
        """
        caller = self.api_keys.caller(authorization)
        caller.check_scope(scope)
        if self._counts_requests and scope in _RATE_LIMITED_SCOPES:
            self.engine.check_rate(caller.tenant)
        return caller

    def require_precondition(self, what: str, *given: object) -> None:
        """Check that a request which would do harm if it came late and again says what it is about.

        Args:
            what: The request, for the message.
            given: `after` and the idempotency key, as far as the request takes them.

        Raises:
            ServiceError: `precondition_required`, where the setting demands it.
        """
        if self.settings.require_preconditions and all(one is None for one in given):
            raise ServiceError(
                "precondition_required",
                f"The {what} has neither `after` nor an Idempotency-Key; this service demands one of them.",
                fix="Send an Idempotency-Key, so that a late copy of this request does no harm.",
            )

    @property
    def config_version(self) -> int:
        """A number that grows when models or keys change: what was found out of a head holds as long as it stays."""
        return self.api_keys.generation() + self.engine.models.generation

    def decoder(self, served: ServedModel) -> RequestDecoder:
        """Return what reads bodies for a model."""
        wire = self._decoders.get((served.name, served.version))
        if wire is None or wire.manifest is not served.manifest:  # new, or read again from its file
            limits = self.settings
            wire = RequestDecoder(
                served.manifest, max_chunk_steps=limits.max_chunk_steps, max_streams=limits.queue_limit
            )
            self._drop_gone(self._decoders)
            self._decoders[served.name, served.version] = wire
        return wire

    def infer_codec(self, served: ServedModel) -> InferCodec:
        """Return what reads and writes the Open Inference Protocol for a model."""
        wire = self._infer_codecs.get((served.name, served.version))
        if wire is None or wire.manifest is not served.manifest:
            wire = InferCodec(
                served.name,
                served.manifest,
                stateful=served.stateful,
                max_rows=self.settings.max_batch_size,
            )
            self._drop_gone(self._infer_codecs)
            self._infer_codecs[served.name, served.version] = wire
        return wire

    def _drop_gone(self, wires: dict[tuple[str, int], Any]) -> None:
        """Drop what reads bodies for models and versions that are no longer served."""
        shelf = self.engine.models
        for name, version in list(wires):
            if version not in shelf.versions(name):
                del wires[name, version]

    def check_host(self, host: str | None) -> None:
        """Check that a browser asks under a name of this machine, where the address is all that guards the service.

        A page reads what comes from its own origin, without a word about it in `Origin`.

        Raises:
            ServiceError: `forbidden`.
        """
        if not self._only_local or not _beyond_this_machine(host):
            return
        if f"http://{host}".lower() not in self._origins and f"https://{host}".lower() not in self._origins:
            raise _wrong_host(f"http://{host}")

    async def check_readiness(self) -> list[str]:
        """Return why requests cannot be served now; empty when they can."""
        reasons = [*await self.engine.readiness_problems(), *self.safety.reasons]
        if self.draining:
            reasons.insert(0, "draining: this process is about to end")
        self.ready = not reasons
        return reasons

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Check that a browser's page comes from here, or from where it is allowed to come.

        Only browsers send `Origin`, and they send it truly: without this check any page in the world could move
        the streams of a service that its reader can reach. A page's own name may have been made to point at this
        machine (DNS rebinding); a service that is guarded by nothing but its address takes names of this machine only.

        Raises:
            ServiceError: `forbidden`.
        """
        if origin is None or origin.lower() in self._origins:
            return
        own = host is not None and origin.partition("://")[2].lower() == host.lower()
        if own and not (self._only_local and _beyond_this_machine(host)):
            return
        raise _wrong_host(origin)


def _wrong_host(origin: str) -> ServiceError:
    return ServiceError(
        "forbidden",
        f"The page's origin is {origin[:100]!a}; expected this service's own or one of `allowed_origins`.",
        fix="Open the page from the service itself, or add its origin to `allowed_origins`.",
    )


def _beyond_this_machine(host: str | None) -> bool:
    """Whether a `Host` header has a name that may be another machine's."""
    name = (host or "localhost").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return not (name.endswith(".localhost") or is_loopback(name))
