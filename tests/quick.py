"""Which tests a run leaves out: `--quick`, by the processor time that they take, and any run without `--all`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LEFT_OUT = {
    *(f"addons/{name}" for name in ("alert", "connect", "dashboard", "demo", "mlflow", "notebook", "offline")),
    *(f"addons/{name}/test_command.py" for name in ("backfill", "backtest", "bench", "drift", "replay", "savepoints")),
    *(
        "addons/backup",
        "addons/hub",
        "addons/sizing",
        "campaign",
        "commands",
        "examples",
        "exactly_once",
        "faults",
        "fuzz",
    ),
    *("model_export/stages", "parity", "process", "programs", "site", "triton"),
    *("addons/artifacts/test_artifacts.py", "addons/drift/test_service.py", "addons/jwt/test_verifier.py"),
    *("addons/fast_path/test_header_parser.py", "addons/fast_path/test_same_answers.py"),
    *("addons/recorded/test_reader.py", "addons/rollouts/test_sampling.py", "addons/watch/test_commits_under_way.py"),
    *("addons/cluster/test_transport.py", "addons/cluster/test_watch.py", "addons/openapi/test_openapi.py"),
    *("addons/releases/test_ramp.py", "addons/releases/test_transitions.py"),
    *("addons/grpc_api/test_serve.py", "addons/tracing/test_grpc_traces.py", "addons/tracing/test_traces.py"),
    *("all_clients/test_conformance.py", "all_clients/test_typescript.py", "all_clients/test_typescript_local.py"),
    *(f"python_client/test_{name}.py" for name in ("in_process", "limits", "repeated_calls", "stream_ops")),
    *(
        "api/test_large_bodies.py",
        "addons/vetting/test_vetting.py",
        "package/test_extending.py",
        "package/test_wheel.py",
    ),
    *(
        "test_ci.py",
        "test_cli.py",
        "test_examples_page.py",
        "test_foreign_names.py",
        "test_readme.py",
        "test_tutorial.py",
    ),
    *(f"model_export/{name}" for name in ("keras", "jax", "torch", "test_export.py", "test_models_page.py")),
    *(f"model_export/{name}" for name in ("test_precision.py", "test_same_bytes.py", "test_export_sources.py")),
    *("model_export/test_localize.py", "model_export/test_mixed_rows.py", "model_export/adoption/test_recipes.py"),
    *(f"model_export/streaming/test_{name}.py" for name in ("declared_length", "faults", "loops", "node_cases")),
    *(f"model_export/streaming/test_{name}.py" for name in ("pooling", "torch")),
    *(f"model_export/verify/test_{name}.py" for name in ("decisions", "evidence", "mutants", "recorders")),
    "model_export/structure/test_rows.py",
}
"""Folders and files that need a training framework or a browser, start one program after the other, or repeat much.

A training framework is imported by each worker process that collects its tests.
"""
OF_THESE = {
    *("campaign/test_arrivals.py", "campaign/test_checker.py", "campaign/test_folds.py"),
    *("commands/test_inspect.py", "commands/test_keys.py", "commands/test_streams.py"),
    *(f"addons/{name}" for name in ("alert/test_thresholds.py", "connect/test_mapping.py", "demo/test_model.py")),
}
"""Files of these folders that take seconds, and run."""
LONG = (
    "python_client/test_client.py::test_the_examples_in_the_docs_print_what_they_show",
    "model_export/runtime/test_random_ops.py::test_functions_that_multiply_without_end_are_refused",
)
"""Tests of other files that take seconds each."""
_ONE_IN = 4


def is_left_out(path: Path, config: pytest.Config) -> bool:
    """Whether `--quick` leaves a whole file or folder out; it leaves nothing out of one that the command line names."""
    if not path.is_relative_to(TESTS):
        return False
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if any(_is_listed(one) and path.is_relative_to(one) for one in named):
        return False
    inside = path.relative_to(TESTS).as_posix()
    if any(other.startswith(f"{inside}/") for other in OF_THESE):
        return False  # a folder: its files are decided one by one
    return inside not in OF_THESE and _is_listed(path)


def is_long(item: pytest.Item) -> bool:
    """Whether `--quick` leaves one test out."""
    marked = any(map(item.get_closest_marker, ("slow", "browser", "compose")))
    return marked or item.nodeid.removeprefix("tests/").startswith(LONG)


def runs_all_files(config: pytest.Config) -> bool:
    """Whether the command line names no file, folder, expression or earlier failures, so that all tests run."""
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    selected = any(config.getoption(option, None) for option in ("keyword", "markexpr", "lf"))
    return named <= {TESTS, TESTS.parent} and not selected


def left_out_of_all(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Return what runs with `--all` alone: tests marked `slow`, and three in four cases of `many`, drawn by name."""
    left_out = set[pytest.Item]()
    cases: dict[str, list[tuple[int, pytest.Item]]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            left_out.add(item)
        elif item.get_closest_marker("many"):
            test, _, case = item.nodeid.partition("[")
            cases.setdefault(test, []).append((zlib.crc32(case.encode()), item))
    for alike in cases.values():
        left_out |= {item for _, item in sorted(alike, key=itemgetter(0))[math.ceil(len(alike) / _ONE_IN) :]}
    return left_out


def _is_listed(path: Path) -> bool:
    """Whether a file or folder is in `LEFT_OUT`, or in a folder that is."""
    if not path.is_relative_to(TESTS):
        return False
    inside = path.relative_to(TESTS)
    return not {part.as_posix() for part in (inside, *inside.parents)}.isdisjoint(LEFT_OUT)
