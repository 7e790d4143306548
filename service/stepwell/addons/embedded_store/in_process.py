"""`InProcessService`: the service in a thread of this process, on a private store and a unix socket."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvicorn

from stepwell.errors import SettingsError
from stepwell.process import server
from stepwell.process.server import StartError
from stepwell.settings import Settings, SharedFolders, addon_settings

_MAX_SOCKET_PATH_BYTES = 100  # the kernel allows 107


class InProcessService:
    """The application of `stepwell serve`, without a port: only this user's processes reach it.

    Its store is one of its own, which an add-on runs in a temporary folder; that is deleted at the end. Settings in the
    environment have no effect on it: they may name a store with real streams.

    Attributes:
        url: `unix://PATH`, the address for clients.
        store_url: The URL of the store.
    """

    def __init__(self, models: Sequence[Path], settings: Mapping[str, Any] | None = None) -> None:
        """Start the service; returns once it responds, which takes about a second.

        Args:
            models: Folders with models, as for `stepwell serve --models`. Changed files are loaded within a second.
            settings: Further settings by name, such as `history`; those of the address and the store are fixed.

        Raises:
            StartError: A folder is missing, or the application did not start.
            SettingsError: A setting has an invalid value.
            StepwellError: The store does not start: as for `Settings.with_store`.
        """
        for folder in models:
            if not folder.is_dir():
                raise StartError(
                    f"The models folder {folder} is {'a file' if folder.exists() else 'not there'}; expected a folder.",
                    fix="Give the folder that `stepwell export -o FOLDER/NAME.onnx` writes to.",
                )
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stepwell-")))
            chosen = stack.enter_context(_settings(models, folder, settings or {}).with_store())
            assert chosen.redis is not None
            self.url, self.store_url = _serve(chosen, folder, stack), chosen.redis
            # also at the end of the program, if nobody closes it
            self._end = weakref.finalize(self, stack.pop_all().close)

    def close(self) -> None:
        """Stop the service and its store, and delete its folder; calls after the first have no effect."""
        self._end()


class _ThreadServer(uvicorn.Server):
    """uvicorn's server, which reports the end of its start to another thread."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.start_ended = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.start_ended.set()


def _serve(settings: Settings, folder: Path, stack: ExitStack) -> str:
    """Start the application in a thread, leave its end to the stack, and return its URL."""
    server.import_app()
    from stepwell.app import create_app

    folders = SharedFolders(folder / "admitted", artifacts=folder / "artifacts")
    config = server.config(settings, create_app(settings, folders))
    path = folder / "http.sock"
    assert len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES, path
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))
    serving = _ThreadServer(config)

    def work() -> None:
        try:
            serving.run([sock])
        finally:
            serving.start_ended.set()

    thread = threading.Thread(target=work, name="stepwell-in-process", daemon=True)
    thread.start()
    stack.callback(_stop, serving, thread)
    serving.start_ended.wait()
    if not serving.started:
        raise StartError(
            "The application did not start; the error is in the log.", fix="Configure `logging` to read it."
        )
    return f"unix://{path}"


def _stop(serving: _ThreadServer, thread: threading.Thread) -> None:
    serving.should_exit = True
    thread.join()


def _settings(models: Sequence[Path], folder: Path, more: Mapping[str, Any]) -> Settings:
    fixed = {"models": list(models), "redis": None, "data_dir": folder / "data", "workers": 1}
    settings = Settings.create(
        {"watch_models": True, "audit_log": False, "drain_s": 0, **more, **fixed},
        fix="`stepwell serve --help` lists all settings.",
    )
    of_ports = [addon for addon in addon_settings() if settings.of(addon).addresses(settings)]
    not_used = {*fixed, "host", "port"}.union(*(addon.model_fields for addon in of_ports))
    if clash := sorted(not_used & set(more)):
        raise SettingsError(
            f"The settings have {', '.join(clash)}, which an engine in this process does not use.",
            fix="Leave them out; models are an argument of the client.",
        )
    return settings
