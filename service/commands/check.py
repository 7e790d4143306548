"""`stepwell check`: tells what `serve` would refuse, and whether every model and the store work."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer

from model_export.errors import ManifestError, StepwellError
from model_export.feedback import fault_of
from service.commands.flags import with_setting_flags
from service.commands.serve import demand_providers, demand_safe_bind, store_for
from service.commands.tables import format_bytes, key_value_table, parity_lines, show, table
from service.models.registry import ModelRegistry, ServedModel
from service.models.vetting import ModelVetting
from service.process import server
from service.requests.jwt import keys_of
from service.settings import Settings

_FAILED, _REFUSED = 1, 3


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found.

    Attributes:
        models: One entry a model that was loaded and has run one step.
        failed: Models that cannot be served, with the reason.
        store: What the store says about itself; empty when it was not reached.
        refusals: Why `serve` would refuse to start.
    """

    models: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=dict)
    refusals: list[dict[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 a model fails, 3 `serve` would refuse."""
        return _REFUSED if self.refusals else _FAILED if self.failed else 0


@with_setting_flags
def check(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, **flags: Any) -> None:
    """Load every model and run one step each, ask the store, and tell what `serve` would refuse.

    Takes the settings of `serve`. An embedded store is started for as long as it takes.
    """
    found = examine(Settings.load(**flags))
    if as_json:
        typer.echo(json.dumps({**asdict(found), "ok": not found.exit_code}, indent=2))
    else:
        _show(found)
    raise typer.Exit(found.exit_code)


def examine(settings: Settings) -> Checked:
    """Look at everything that a start of the service needs."""
    found = Checked()
    with _noting(found):
        demand_safe_bind(settings)
    with _noting(found):
        demand_providers(settings)
    with _noting(found):
        keys_of(settings)
    with _noting(found):
        server.listen(settings).close()
    with _noting(found), store_for(settings) as (_, facts):
        found.store.update(facts.as_dict())
    shelf = ModelRegistry(settings.models, ModelVetting(settings, None).load)
    found.failed.extend(asyncio.run(shelf.reload()).failed)
    for name in shelf.names():
        for version in shelf.versions(name):
            try:
                found.models.append(_one_step(shelf.get(name, version)))
            except StepwellError as exc:
                found.failed.append(f"{name}/{version}: {exc}")
    return found


@contextlib.contextmanager
def _noting(found: Checked) -> Any:
    """Note the refusal that the block ends with."""
    try:
        yield
    except StepwellError as exc:
        found.refusals.append({"problem": exc.problem, "fix": exc.fix})


def _one_step(served: ServedModel) -> dict[str, Any]:
    """Run one timestep of one stream from the initial state, all inputs zero.

    Raises:
        StepwellError: It fails.
    """
    model = served.step_model
    if (fault := fault_of(model.manifest)) is not None:
        raise ManifestError(f"Its own feedback cannot be used: {fault}.", fix="Mend `feedback` in its manifest.")
    inputs = {i.name: np.zeros((1, *i.shape), i.dtype) for i in model.manifest.inputs}
    began = perf_counter()
    model.step(inputs, model.initial_states(1))
    parity = model.manifest.verified
    return {
        "name": served.name,
        "version": served.version,
        "bytes_per_stream": model.state_bytes,
        "step_ms": round((perf_counter() - began) * 1000, 3),
        "parity": None if parity is None else parity.model_dump(mode="json"),
    }


def _show(found: Checked) -> None:
    columns = ("model", "version", "a stream's state", "one step", "parity")
    lines = [
        (
            one["name"],
            str(one["version"]),
            format_bytes(one["bytes_per_stream"]),
            f"{one['step_ms']:.2f} ms",
            parity_lines(one["parity"]),
        )
        for one in found.models
    ]
    show(table("Models", columns, lines))
    if found.store:
        show(key_value_table("Store", {name: str(value) for name, value in found.store.items()}))
    show(*(f"model fails: {reason}" for reason in found.failed))
    for refusal in found.refusals:
        show(f"serve would refuse: {refusal['problem']}", f"  {refusal['fix']}")
    if not found.exit_code:
        show("All is well." if found.models else "All is well, but there is no model yet.")
