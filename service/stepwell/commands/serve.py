"""`stepwell serve`: checks the settings, starts the embedded store if no store is configured, and serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import typer

from stepwell import logs
from stepwell.commands.flags import with_setting_flags
from stepwell.commands.interrupted import deferred, exit_at
from stepwell.commands.store_permissions import check_permissions
from stepwell.commands.temporary import temporary_folder
from stepwell.process import server
from stepwell.process.server import StartError
from stepwell.process.supervisor import Supervisor
from stepwell.requests.auth.api_keys import ApiKeys
from stepwell.service_addon import ServiceAddon, addon_classes
from stepwell.settings import PREFIX, Settings, SharedFolders, addon_settings, is_loopback
from stepwell.store.checks.safety import ServerInfo, check_safe, read_server_info
from stepwell.store.state_store import StateStore

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OTHER_FILES = 512  # connections to the store, model files, log, libraries


@with_setting_flags
def serve(**flags: Any) -> None:
    """Serve models over HTTP and WebSocket; every setting is also STEPWELL_<NAME> in the environment.

    Up to --watch-models are the settings that services usually set; the others have values that are good for most.
    """
    if (flags.get("log_format") or os.environ.get(f"{PREFIX}LOG_FORMAT")) == "json":
        logs.configure("json")  # also for the error if a setting has an invalid value
    raise typer.Exit(run(Settings.load(**flags)))


def run(settings: Settings) -> int:
    """Serve until a signal arrives, and return the exit code.

    Raises:
        StartError: The configuration is unsafe, a models folder is not there, or the address cannot be bound.
        KeysFileError: The file of API keys cannot be used.
        StepwellError: As for `AddonSettings.check`.
        UnsafeStoreError: The store does not give the configured durability, or cannot be reached.
    """
    logs.configure(settings.log_format)
    for check in START_CHECKS:
        check(settings)
    if (address := settings.open_address) is not None:
        logs.log.warning(
            "The API is open without keys: whoever reaches %s may read, change and delete every stream. Set "
            "api_keys_file, or let only this machine reach it",
            address,
        )
    exit_at(_STOP_SIGNALS, 0)  # uvicorn handles them later; before and after it the store has to stop too
    _allow_open_files(settings)
    with (
        contextlib.closing(server.listen(settings)) as sock,
        settings.reserved() as with_ports,
        open_store(with_ports) as (with_store, store_info),
        _shared_folders(settings) as folders,
    ):
        data = settings.data_dir.absolute() if settings.redis is None else "the store"
        folders_used = ", ".join(str(folder.absolute()) for folder in settings.models)  # of the current folder
        logs.log.info("Models are read from %s; states are in %s", folders_used, data)
        bound = with_store.model_copy(update={"port": sock.getsockname()[1]})
        store = f"{'embedded ' if settings.redis is None else ''}store {store_info.server}"
        if bound.workers > 1:
            return Supervisor(bound, sock, folders, store=store).run()
        with deferred(_STOP_SIGNALS):
            server.import_app()
        return server.run(bound, sock, folders, store=store)


@contextlib.contextmanager
def _shared_folders(settings: Settings) -> Iterator[SharedFolders]:
    """Yield the folders that the workers share; all but the verdicts beside the embedded store are temporary."""
    verdicts = settings.data_dir.absolute() / "admitted" if settings.redis is None else None
    with temporary_folder("stepwell-") as folder:
        if settings.workers == 1:
            yield SharedFolders(verdicts, artifacts=folder / "artifacts")
            return
        (folder / "metrics").mkdir()
        yield SharedFolders(verdicts or folder / "admitted", metrics=folder / "metrics", artifacts=folder / "artifacts")


def check_bind_address(settings: Settings) -> None:
    """Check that only requests with keys are accepted from other machines.

    Raises:
        StartError: They need no key; or `production` is set, and there are no keys.
    """
    if settings.production and (not settings.has_keys or settings.insecure):
        found = "is set together with `insecure`" if settings.insecure else "is set, and there is no api_keys_file"
        raise StartError(f"`production` {found}.", fix="Give --api-keys-file FILE, and leave --insecure out.")
    if settings.has_keys or settings.insecure or is_loopback(settings.host):
        return
    raise StartError(
        f"`host` is {settings.host}, which others can reach, and there is no api_keys_file.",
        fix="Give --api-keys-file FILE, or listen on 127.0.0.1, or accept it with --insecure.",
    )


def check_model_folders(settings: Settings) -> None:
    """Check that the models folders that were named are there; the default one may be created later.

    Raises:
        StartError: One is not.
    """
    if "models" not in settings.model_fields_set:
        return
    for folder in settings.models:
        if folder.is_dir():
            continue
        import difflib  # only here: it takes a moment

        around = folder.absolute().parent
        names = [entry.name for entry in around.iterdir() if entry.is_dir()] if around.is_dir() else []
        near = difflib.get_close_matches(folder.name, names, n=1)
        found = "is a file, not a folder" if folder.is_file() else "is not there"
        raise StartError(
            f"The models folder {str(folder)!r} {found} (looked for {folder.absolute()}).",
            fix=f"Did you mean {folder.parent / near[0]}?" if near else "Create it, or name another with --models DIR.",
        )


def check_providers(settings: Settings) -> None:
    """Check that onnxruntime has the execution providers; without this check it would use the CPU instead.

    Raises:
        StartError: It lacks one.
    """
    if settings.execution_providers == ["CPUExecutionProvider"]:
        return
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if missing := [name for name in settings.execution_providers if name not in available]:
        raise StartError(
            f"`execution_providers` has {', '.join(missing)}; this onnxruntime has {', '.join(available)}.",
            fix="Install the onnxruntime package that has it, or leave it out.",
        )


def check_keys(settings: Settings) -> None:
    """Check that the file of API keys can be used, as for `ApiKeys`."""
    ApiKeys(settings.api_keys_file)


def check_addons(settings: Settings) -> None:
    """Check what add-ons need, as for `AddonSettings.check`."""
    for addon in addon_settings():
        settings.of(addon).check(settings)


START_CHECKS: Final[Sequence[Callable[[Settings], object]]] = (
    *(
        check_bind_address,
        check_model_folders,
        check_providers,
        check_keys,
        check_addons,
    ),
)
"""Each refuses settings with which the service must not start, by raising a `StepwellError`."""


@contextlib.contextmanager
def open_store(settings: Settings) -> Iterator[tuple[Settings, ServerInfo]]:
    """Yield settings with the URL of a safe store, and its version and settings.

    Raises:
        StepwellError: As for `Settings.with_store`.
        UnsafeStoreError: The store does not give the configured durability, or cannot be reached.
    """
    with deferred(_STOP_SIGNALS):
        addons = addon_classes()
    with settings.with_store() as with_store:
        yield with_store, asyncio.run(_check_store(with_store, addons))


async def _check_store(settings: Settings, addons: Sequence[type[ServiceAddon]]) -> ServerInfo:
    """Return the version and settings of the store, after checking that it is safe to use."""
    assert settings.redis is not None
    store = StateStore(settings.redis, durability=settings.durability)
    try:
        info = await read_server_info(store, timeout=settings.request_timeout_s)
        check_safe(info, settings.durability, allow_eviction=settings.allow_eviction)
        await check_permissions(store, addons)
        return info
    finally:
        await store.close()


def _allow_open_files(settings: Settings) -> None:
    """Raise the limit on open files, often 1024, to what `max_connections` needs, if this user may do so."""
    needed = settings.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if soft < needed > allowed:
        logs.log.warning("Open files are limited to %d; max_connections needs %d", allowed, needed)
