"""`judge_case`: builds one model, exports it, and returns what became of it."""

from __future__ import annotations

import importlib
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from campaign.exporter.cases import Case
from stepwell_export.export_sources import choose_keras_backend
from stepwell_export.runtime.errors import StepwellError

Verdict = Literal["right", "weak", "refused", "wrong", "failed"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
"""`weak`: written only where the user accepts it. `failed`: an error that is no refusal, or the end of the process."""

_HOMES: Final = {"keras": "keras_models", "torch": "torch_models", "states": "torch_models", "onnx": "onnx_models",
                 "adopt": "onnx_models"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a model.

    Attributes:
        case: Its name.
        described: What it is.
        rare: Its rare condition; empty: it has none.
        front_end: What it is written in.
        verdict: What became of it.
        why: The refusal, the error, or where it is wrong.
        seconds: How long it took.
    """

    case: str
    described: str
    rare: str
    front_end: str
    verdict: Verdict
    why: str
    seconds: float


def judge_case(case: Case) -> Outcome:
    """Build, export and judge one model; nothing is raised but what ends the process."""
    started = time.monotonic()
    try:
        verdict, why = _judge(case)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is the verdict
        place = traceback.extract_tb(exc.__traceback__)[-1]
        verdict, why = "failed", f"{type(exc).__name__} at {Path(place.filename).name}:{place.lineno}: {exc}"
    return Outcome(case.id, case.described, case.rare, case.front_end, verdict, why[:500], time.monotonic() - started)


def _judge(case: Case) -> tuple[Verdict, str]:
    from campaign.exporter.judge import find_fault

    choose_keras_backend()
    built = importlib.import_module(f"campaign.exporter.{_HOMES[case.front_end]}").build(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            if built.export(path):
                return "weak", ""
        except StepwellError as exc:
            return "refused", exc.problem
        fault = find_fault(case, built, path)
    return ("right", "") if fault is None else ("wrong", str(fault))
