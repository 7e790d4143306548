"""`ServiceAddon`: what is built on the running service and can be left out. The service imports none."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from stepwell_export.runtime.registered import AddonError, load, registered

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

    from stepwell.engine.engine import Engine
    from stepwell.engine.model_reloads import ModelReloads
    from stepwell.engine.model_runs import ModelRuns
    from stepwell.engine.observer import EngineObserver, Sampler
    from stepwell.engine.placing import Placing
    from stepwell.engine.publisher import Publisher
    from stepwell.models.artifacts import Artifacts, LoadModel
    from stepwell.models.registry import ModelRegistry
    from stepwell.models.served import ServedModel
    from stepwell.protocols import Protocols
    from stepwell.requests.auth.api_keys import Caller
    from stepwell.requests.context import AppContext
    from stepwell.requests.error_formats import ErrorFormat
    from stepwell.requests.hot_routes import HotRoute
    from stepwell.requests.tracer import RequestTracer
    from stepwell.store.state_store import StateStore
    from stepwell.store.transport.connection import Argument

_Made = TypeVar("_Made")


class ServiceAddon:
    """One add-on of one worker; each method may be left as it is.

    An entry point of the group `stepwell.addons` is a subclass. Each worker creates it once, before anything is open.

    Attributes:
        context: Settings, API keys and metrics; the engine, once `start` is called.
        version: The version of the service.
    """

    def __init__(self, context: AppContext, version: str) -> None:
        self.context = context
        self.version = version

    @staticmethod
    def store_commands(record: str) -> Iterable[Sequence[Argument]]:
        """Return each command that it sends to the store, to be run once before the service starts.

        A store whose user may not run one of them is refused there, and not at a stream's first request. Commands of
        scripts are among them by themselves: not every server names the command that it denies to a script.

        Args:
            record: The key of the record of a stream that does not exist, to make keys of. What the commands write
                they have to delete.
        """
        return ()

    def add_routes(self, app: FastAPI) -> None:
        """Add routes, behind those of steps and before all others: the first one that matches a path answers."""

    def hot_routes(self) -> Iterable[HotRoute]:
        """Return those of its routes that are requested often, for `protocols`."""
        return ()

    def protocols(self, routes: Iterable[HotRoute]) -> Protocols | None:
        """Return the classes of connections that answer some requests without FastAPI; None: FastAPI answers all.

        At most one add-on has them. What they answer is byte for byte what FastAPI's route would.

        Args:
            routes: The `hot_routes` of all add-ons.
        """
        return None

    def error_formats(self) -> Mapping[str, ErrorFormat]:
        """Return the formats of errors, by the first segment of the paths: `{"v2": ...}`; others are problems."""
        return {}

    def caller_of_token(self) -> Callable[[str], Caller] | None:
        """Return what returns the caller of a bearer token that is no API key, or refuses it; None: nothing does.

        At most one add-on does; its settings have `accepts_tokens`.
        """
        return None

    def tracer(self) -> RequestTracer | None:
        """Return what traces single requests; None: it traces none. At most one add-on does."""
        return None

    def observer(self) -> EngineObserver | None:
        """Return what the engine notifies of its work, besides the metrics; None: nothing."""
        return None

    def artifacts(self, store: StateStore, load: LoadModel, folder: Path | None) -> Artifacts | None:
        """Return what keeps model files for the streams that need them; None: nothing does. At most one add-on does.

        Args:
            store: The store.
            load: Checks and loads a model file.
            folder: For copies of the files, which the workers share; None: there is none.
        """
        return None

    def placing(self, store: StateStore, models: ModelRegistry) -> Placing | None:
        """Return what places streams on versions; None: it places none. At most one add-on does."""
        return None

    def publisher(self, store: StateStore) -> Publisher | None:
        """Return what decides what is published with commits; None: nothing is. At most one add-on does."""
        return None

    def reloads(self, store: StateStore, models: ModelRegistry) -> ModelReloads | None:
        """Return what loads and reloads the models, in the place of `ModelReloads`; None: nothing else does.

        At most one add-on does.
        """
        return None

    def model_runs(self, engine: Engine) -> ModelRuns | None:
        """Return what runs models besides steps, on the engine that was just built; None: nothing does."""
        return None

    async def start(self) -> None:
        """Begin: the store is reachable and the models are loaded, and no request is answered yet.

        Raises:
            StepwellError: It cannot begin; the service does not start.
        """

    def background(self) -> Iterable[Coroutine[Any, Any, None]]:
        """Return work that runs from the start of the service to its end, when it is cancelled."""
        return ()

    def begin_stop(self, grace_s: float) -> None:
        """Accept nothing more: the service has begun to end.

        Args:
            grace_s: Seconds for what was accepted.
        """

    async def stop(self, grace_s: float) -> None:
        """End, within the grace; the engine is still open."""

    async def close(self) -> None:
        """End for good: the last timestep has been answered, and the store is still open."""

    def sampler(self, served: ServedModel) -> Sampler | None:
        """Return what sees committed batches of a model version that begins to be stepped; None: nothing."""
        return None

    def end_sampler(self, served: ServedModel) -> None:
        """End what `sampler` began: the model version is not stepped any more."""


def addon_classes() -> list[type[ServiceAddon]]:
    """Return the add-ons of all installed packages, in the order of their names.

    Raises:
        AddonError: One cannot be imported, or is no `ServiceAddon`.
    """
    return [load(point, base=ServiceAddon) for point in registered("stepwell.addons").values()]


def sole(addons: Iterable[ServiceAddon], hook: str, of: Callable[[ServiceAddon], _Made | None]) -> _Made | None:
    """Return what a hook returns that at most one add-on may have; None: none has it.

    Args:
        addons: The add-ons.
        hook: The name of the hook, for the error.
        of: Calls it.

    Raises:
        AddonError: Several have it.
    """
    found = [(addon, made) for addon in addons if (made := of(addon)) is not None]
    if len(found) > 1:
        names = " and ".join(f"{type(addon).__module__}.{type(addon).__qualname__}" for addon, _ in found)
        raise AddonError(
            f"The add-ons {names} all have `{hook}`; at most one may.", fix="Uninstall the packages of all but one."
        )
    return found[0][1] if found else None
