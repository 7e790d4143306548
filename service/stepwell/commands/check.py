"""`stepwell check`: report whether `serve` would start, and whether every model and the store work."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Final

import numpy as np
import typer

from stepwell.commands.flags import with_setting_flags
from stepwell.commands.serve import START_CHECKS, open_store
from stepwell.commands.tables import Json, format_bytes, key_value_table, parity_lines, print_json, show, table
from stepwell.models.loading import model_loader
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell.process import server
from stepwell.settings import Settings, addon_settings
from stepwell_export.runtime.errors import ManifestError, StepwellError
from stepwell_export.runtime.feedback import fault_of

_FAILED, _REFUSED = 1, 3
_BESIDE_A_SERVICE: Final[Mapping[int | None, str]] = {
    errno.EADDRINUSE: " Or check beside the service that runs there, with --port 0.",
    errno.EWOULDBLOCK: " Or check beside the service that runs there, with --data-dir and a new folder.",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check.

    Attributes:
        models: One entry per model that was loaded and has run one step.
        failed: Models that cannot be served, with the reason.
        store: The store's version and settings; empty if it was not reached.
        not_kept: Models whose artifacts are not kept, with the reason.
        ignored: Files of the models folders that look like models but are none, with what to do.
        refusals: Why `serve` would refuse to start.
    """

    models: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=dict)
    not_kept: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    refusals: list[dict[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 without problems, 1 if a model fails, 3 if `serve` would refuse to start."""
        return _REFUSED if self.refusals else _FAILED if self.failed else 0


@with_setting_flags
def check(*, as_json: Json = False, **flags: Any) -> None:
    """Load every model and run one step each, check the store, and report what `serve` would refuse.

    Accepts the settings of `serve`. An embedded store is started for the duration of the check. The port and the data
    folder of a running service are in use: to check beside it, add `--port 0 --data-dir NEW`.
    """
    checked = examine(Settings.load(**flags))
    if as_json:
        print_json({**asdict(checked), "ok": not checked.exit_code})
    else:
        _show(checked)
    raise typer.Exit(checked.exit_code)


def examine(settings: Settings) -> Checked:
    """Check everything that the service needs to start."""
    checked = Checked()
    for check_one in START_CHECKS:
        with _refusals_in(checked):
            check_one(settings)
    with _refusals_in(checked):
        server.listen(settings).close()
    with _refusals_in(checked), open_store(settings) as (_, store_info):
        checked.store.update(store_info.as_dict())
    registry = ModelRegistry(settings.models, model_loader(settings))
    report = asyncio.run(registry.reload())
    checked.failed.extend(report.failed)
    checked.ignored.extend(report.ignored)
    checked.failed.extend(settings.unknown_history(registry.names()))
    for name in registry.names():
        for version in registry.versions(name):
            served = registry.get(name, version)
            files = [served.path, *served.step_model.weight_files]
            reasons = [settings.of(addon).not_kept_reason(files) for addon in addon_settings()]
            checked.not_kept.extend(f"{name}/{version}: {reason}" for reason in reasons if reason)
            try:
                checked.models.append(_run_one_step(served))
            except StepwellError as exc:
                checked.failed.append(f"{name}/{version}: {exc}")
    return checked


@contextlib.contextmanager
def _refusals_in(checked: Checked) -> Any:
    """Record the refusal that the block raises, if any."""
    try:
        yield
    except StepwellError as exc:
        reason = exc.__cause__.errno if isinstance(exc.__cause__, OSError) else None
        checked.refusals.append({"problem": exc.problem, "fix": exc.fix + _BESIDE_A_SERVICE.get(reason, "")})


def _run_one_step(served: ServedModel) -> dict[str, Any]:
    """Run one timestep of zeros from the initial state.

    Raises:
        StepwellError: The run failed.
    """
    model = served.step_model
    if (fault := fault_of(model.manifest)) is not None:
        raise ManifestError(f"The feedback rule cannot be used: {fault}.", fix="Fix `feedback` in the manifest.")
    inputs = {i.name: np.zeros((1, *i.shape), i.dtype) for i in model.manifest.inputs}
    start = perf_counter()
    model.step(inputs, model.initial_states(1))
    parity = model.manifest.verified
    return {
        "name": served.name,
        "version": served.version,
        "bytes_per_stream": model.state_bytes,
        "step_ms": round((perf_counter() - start) * 1000, 3),
        "parity": None if parity is None else parity.model_dump(mode="json"),
    }


def _show(checked: Checked) -> None:
    columns = ("model", "version", "state per stream", "one step", "parity")
    rows = [
        (
            model["name"],
            str(model["version"]),
            format_bytes(model["bytes_per_stream"]),
            f"{model['step_ms']:.2f} ms",
            parity_lines(model["parity"]),
        )
        for model in checked.models
    ]
    show(table("Models", columns, rows))
    if checked.store:
        show(key_value_table("Store", {name: str(value) for name, value in checked.store.items()}))
    show(*(f"model fails: {reason}" for reason in checked.failed))
    show(*(f"ignored: {file}" for file in checked.ignored))
    show(*(f"artifact is not kept, streams need the model's file: {reason}" for reason in checked.not_kept))
    for refusal in checked.refusals:
        show(f"serve would refuse to start: {refusal['problem']}", f"  {refusal['fix']}")
    if not checked.exit_code:
        show("No problems found." if checked.models else "No problems found, but there is no model yet.")
