"""`stepwell serve`: checks what it is told, starts the embedded store where none is named, and serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from service import logs
from service.commands.flags import with_setting_flags
from service.models.reload import ADMITTED_ENV, CONTROL_ENV
from service.process import server
from service.process.server import StartError
from service.process.supervisor import Supervisor
from service.requests.jwt import keys_of
from service.settings import Settings, is_loopback
from service.store.checks.permissions import check_permissions
from service.store.checks.safety import ServerInfo, check_safe, read_server_info
from service.store.embedded_server import EmbeddedStore
from service.store.state_store import StateStore

_ENDING = (signal.SIGTERM, signal.SIGINT)
_FILES_BESIDES = 512  # connections to the store, model files, log, libraries


@with_setting_flags
def serve(**flags: Any) -> None:
    """Serve models over HTTP and WebSocket; every setting is also STEPWELL_<NAME> in the environment."""
    raise typer.Exit(run(Settings.load(**flags)))


def run(settings: Settings) -> int:
    """Serve until a signal comes, and return the exit code.

    Raises:
        StartError: The configuration is unsafe, or the address cannot be had.
        KeysFileError: The file of API keys cannot be used.
        EmbeddedStoreError: The embedded store cannot be started.
        UnsafeStoreError: The store cannot keep what is promised, or cannot be reached.
    """
    logs.configure(settings.log_format)
    demand_safe_bind(settings)
    demand_providers(settings)
    keys_of(settings)
    for number in _ENDING:  # so that the store is ended also before and after uvicorn
        signal.signal(number, _leave)
    _allow_open_files(settings)
    with contextlib.closing(server.listen(settings)) as sock, store_for(settings) as (found, facts):
        os.environ.pop(ADMITTED_ENV, None)
        if settings.redis is None:
            os.environ[ADMITTED_ENV] = str(settings.data_dir.absolute() / "admitted")
        ready = found.model_copy(update={"port": sock.getsockname()[1]})
        store = f"{'embedded ' if settings.redis is None else ''}store {facts.server}"
        if ready.workers == 1:
            with _signals_deferred():
                import service.app  # noqa: F401 - what is imported here, the server needs
            return server.run(ready, sock, store=store)
        with tempfile.TemporaryDirectory(prefix="stepwell-") as control:
            os.environ[CONTROL_ENV] = control
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(Path(control) / "metrics")
            Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir()
            os.environ.setdefault(ADMITTED_ENV, str(Path(control) / "admitted"))
            return Supervisor(ready, sock, store=store).run()


def demand_safe_bind(settings: Settings) -> None:
    """Check that an address beyond this machine is guarded by keys.

    Raises:
        StartError: It is not; or `production` is set, and there are no keys.
    """
    has_keys = settings.api_keys_file is not None or settings.jwt_keys is not None
    if settings.production and (not has_keys or settings.insecure):
        found = "is set together with `insecure`" if settings.insecure else "is set, and there is no api_keys_file"
        raise StartError(f"`production` {found}.", fix="Give --api-keys-file FILE, and leave --insecure out.")
    if has_keys or settings.insecure or is_loopback(settings.host):
        return
    raise StartError(
        f"`host` is {settings.host}, which others can reach, and there is no api_keys_file.",
        fix="Give --api-keys-file FILE, or listen on 127.0.0.1, or accept it with --insecure.",
    )


def demand_providers(settings: Settings) -> None:
    """Check that onnxruntime has the execution providers; by itself it would fall back to the CPU.

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
            fix="Install the onnxruntime package that brings it, or leave it out.",
        )


@contextlib.contextmanager
def store_for(settings: Settings) -> Iterator[tuple[Settings, ServerInfo]]:
    """Give settings that name a store which was found safe; ends the embedded one with the block."""
    with contextlib.ExitStack() as stack:
        if settings.redis is None:
            embedded = EmbeddedStore(settings.data_dir, fsync_always=settings.durability == "fsync")
            embedded.start()
            stack.callback(embedded.stop)
            settings = settings.model_copy(update={"redis": embedded.url})
        yield settings, asyncio.run(_safe_facts(settings))


async def _safe_facts(settings: Settings) -> ServerInfo:
    """Return what the store says of itself, once it is sure that it can be used.

    Raises:
        UnsafeStoreError: It cannot.
    """
    assert settings.redis is not None
    store = StateStore(settings.redis, durability=settings.durability)
    try:
        facts = await read_server_info(store, timeout=settings.request_timeout_s)
        check_safe(facts, settings.durability, allow_eviction=settings.allow_eviction)
        await check_permissions(store)
        return facts
    finally:
        await store.close()


def _allow_open_files(settings: Settings) -> None:
    """Raise the limit on open files, often 1024, to what `max_connections` needs, as far as this user may."""
    needed = settings.max_connections + _FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if soft < needed > allowed:
        logs.log.warning("Open files are limited to %d; max_connections needs %d", allowed, needed)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold signals back until the block has ended: importing a native module loses what `_leave` raises meanwhile."""
    came: list[int] = []
    for number in _ENDING:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in _ENDING:
            signal.signal(number, _leave)
    if came:
        raise SystemExit(0)


def _leave(_number: int, _frame: types.FrameType | None) -> None:
    raise SystemExit(0)
