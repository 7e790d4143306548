"""`AppContext`: the dependencies of every route, created once per process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from stepwell.codec.request_decoder import RequestDecoder
from stepwell.engine.engine import Engine
from stepwell.engine.model_reloads import ModelReloads
from stepwell.errors import ServiceError
from stepwell.metrics import Metrics
from stepwell.models.served import ServedModel
from stepwell.requests.audit import AuditLog
from stepwell.requests.auth.api_keys import ApiKeys, Caller, Scope
from stepwell.requests.error_formats import NATIVE, ErrorFormat
from stepwell.requests.large_bodies import LargeBodies
from stepwell.settings import is_loopback
from stepwell.store.checks.safety import SafetyMonitor

if TYPE_CHECKING:
    from stepwell.requests.tracer import RequestTracer
    from stepwell.settings import Settings
    from stepwell_export.runtime.manifest import Manifest

Codec = TypeVar("Codec")

# Steps are counted by their timesteps, in the engine; requests for metrics are never limited.
_RATE_LIMITED_SCOPES: Final[frozenset[Scope]] = frozenset({"read", "admin", "models"})


class AppContext:
    """The dependencies of every route.

    Attributes:
        settings: The service's settings.
        api_keys: Authenticates callers.
        metrics: Counts requests and errors.
        audit: Logs operations that change streams, models or keys.
        engine: Applies timesteps; set while the application runs.
        reloads: Reloads the models in every worker of every replica; set while the application runs.
        safety: Checks that the store's settings are safe; set while the application runs.
        tracer: Traces requests; None: none is traced.
        large_bodies: Decodes large bodies.
        error_formats: Formats of errors that add-ons have, by the first segment of the paths.
        connections: The open connections of this process, those of WebSockets included.
        websockets: Number of open WebSockets of this process.
        websockets_of: The same by tenant.
        ready: Result of the last readiness check.
        draining: This process is about to end: it is not ready, and responses close their connections.
    """

    def __init__(self, settings: Settings, keys: ApiKeys, metrics: Metrics) -> None:
        self.settings = settings
        self.api_keys = keys
        self.metrics = metrics
        self.audit = AuditLog(enabled=settings.audit_log)
        keys.call_on_change(self.audit.keys_changed)
        self.engine: Engine
        self.reloads: ModelReloads
        self.safety: SafetyMonitor
        self.tracer: RequestTracer | None = None
        self.large_bodies = LargeBodies()
        self.connections: Collection[object] = ()
        self.websockets = 0
        self.websockets_of: Counter[str] = Counter()
        self.ready = False
        self.draining = False
        self.error_formats: Mapping[str, ErrorFormat] = {}
        self._codecs: dict[tuple[Callable[..., Any], str, int], tuple[Manifest, Any]] = {}
        self._loopback_only = not settings.has_keys and is_loopback(settings.host)  # the address is the only protection
        self._counts_requests = settings.tenant_rate is not None
        self._origins = {origin.rstrip("/").lower() for origin in settings.allowed_origins}

    def authenticate(self, authorization: str | None, scope: Scope) -> Caller:
        """Return the caller, after checking that the caller has the scope.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        caller = self.api_keys.caller(authorization)
        caller.check_scope(scope)
        return caller

    def authenticate_and_count(self, authorization: str | None, scope: Scope) -> Caller:
        """Return the caller of a request, after checking the scope; the request counts towards its tenant's rate.

        Raises:
            ServiceError: `unauthenticated`, `forbidden`, or `rate_limited`.
        """
        caller = self.authenticate(authorization, scope)
        if self._counts_requests and scope in _RATE_LIMITED_SCOPES:
            self.engine.admission.check_rate(caller.tenant)
        return caller

    def require_precondition(self, what: str, *given: object) -> None:
        """Check that a request which a late duplicate would make harmful has a precondition.

        Args:
            what: Name of the request, for the message.
            given: `after` and the idempotency key, as far as the request accepts them; None: not sent.

        Raises:
            ServiceError: `precondition_required`: all are None, and the setting `require_preconditions` is on.
        """
        if self.settings.require_preconditions and all(one is None for one in given):
            raise ServiceError(
                "precondition_required",
                f"The {what} has neither `after` nor an Idempotency-Key; this service demands one of them.",
                fix="Send an Idempotency-Key, so that a late copy of this request does no harm.",
            )

    def codec(self, make: Callable[[ServedModel, Settings], Codec], served: ServedModel) -> Codec:
        """Return what a function makes of a model version; it is called again when the file was reloaded."""
        key = (make, served.name, served.version)
        manifest, codec = self._codecs.get(key, (None, None))
        if manifest is not served.manifest:
            codec = make(served, self.settings)
            self._evict_unserved()
            self._codecs[key] = served.manifest, codec
        return cast("Codec", codec)

    def decoder(self, served: ServedModel) -> RequestDecoder:
        """Return the decoder of request bodies for a model."""
        return self.codec(_decoder, served)

    def error_format_of(self, path: str) -> ErrorFormat:
        """Return the error format of the routes at a path."""
        return self.error_formats.get(path[1:].partition("/")[0], NATIVE)

    def _evict_unserved(self) -> None:
        """Evict the codecs of models and versions that are no longer served."""
        models = self.engine.models
        for key in list(self._codecs):
            if key[2] not in models.versions(key[1]):
                del self._codecs[key]

    def check_host(self, host: str | None) -> None:
        """Check that a browser uses a name of this machine, if the address is the service's only protection.

        A page may read responses from its own origin, and its browser sends no `Origin` with such requests.

        Raises:
            ServiceError: `forbidden`.
        """
        if not self._loopback_only or not _may_be_another_machine(host):
            return
        if f"http://{host}".lower() not in self._origins and f"https://{host}".lower() not in self._origins:
            raise _wrong_host(f"http://{host}")

    async def check_readiness(self) -> list[str]:
        """Return the reasons why requests cannot be served now; empty if they can."""
        reasons = [*await self.engine.readiness_problems(), *self.safety.reasons]
        if self.draining:
            reasons.insert(0, "draining: this process is about to end")
        self.ready = not reasons
        return reasons

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Check that a browser's page was loaded from this service or from an allowed origin.

        Only browsers send `Origin`, and a page cannot forge it: without this check any page could advance the streams
        of a service that its reader can reach. The page's own host name may resolve to this machine (DNS rebinding);
        so a service whose only protection is its address accepts names of this machine only.

        Raises:
            ServiceError: `forbidden`.
        """
        if origin is None or origin.lower() in self._origins:
            return
        is_own_origin = host is not None and origin.partition("://")[2].lower() == host.lower()
        if is_own_origin and not (self._loopback_only and _may_be_another_machine(host)):
            return
        raise _wrong_host(origin)


def _decoder(served: ServedModel, settings: Settings) -> RequestDecoder:
    return RequestDecoder(served.manifest, max_chunk_steps=settings.max_chunk_steps, max_streams=settings.queue_limit)


def _wrong_host(origin: str) -> ServiceError:
    return ServiceError(
        "forbidden",
        f"The page's origin is {origin[:100]!a}; expected this service's own or one of `allowed_origins`.",
        fix="Open the page from the service itself, or add its origin to `allowed_origins`.",
    )


def _may_be_another_machine(host: str | None) -> bool:
    """Whether a `Host` header has a name that may belong to another machine."""
    name = (host or "localhost").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return not (name.endswith(".localhost") or is_loopback(name))
