"""Requests generated from `/openapi.json` get the documented statuses and documents, and no server error.

CI sends a few per operation; for more: STEPWELL_OPENAPI=500 ./stepwell test tests/addons/openapi/test_openapi.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.api.running import Service, running_service
from tests.graphs import fold, two_inputs, write_models
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import Server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: STEPWELL_EXTRAS=dev")

from schemathesis import GenerationMode  # noqa: E402 - it may not be there
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

NAMES = {"model": ["fold", "fold", "two_inputs", "none"], "stream": ["a", "b", "c"], "name": ["s"], "version": ["1"]}
INPUTS = [{"x": [5]}, [6], [[7], [8]], {"x": [[9]]}, [[[1]], [[2]]], {"a": [1, 2], "b": 3}]


def no_server_error(_context: Any, response: Any, _case: Any) -> None:
    """No request fails with a server error, except 501 for features that Stepwell does not implement."""
    assert response.status_code < 500 or response.status_code == 501, response.text


EACH = int(os.environ.get("STEPWELL_OPENAPI", "8"))
CHECKS = [no_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), fold, two_inputs)


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, shared_redis: Server, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    keys = write_keys_file(tmp_path_factory.mktemp("keys") / "keys.json", key("full"))
    more: dict[str, Any] = {} if request.param == "open" else {"api_keys_file": keys}
    with running_service(shared_redis.url, folder, lane=True, **more) as one:
        yield one


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("service", "mode"),
    [
        pytest.param("open", GenerationMode.POSITIVE, id="open-sound"),
        pytest.param("with keys", GenerationMode.POSITIVE, id="with keys-sound"),
        pytest.param("with keys", GenerationMode.NEGATIVE, id="with keys-unsound"),  # most requests have a valid key
    ],
    indirect=["service"],
)
def test_responses_match_the_openapi_document(service: Service, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    schema = schemathesis.openapi.from_dict(narrowed(service.app.openapi()))
    broken: list[str] = []
    seen: set[int] = set()
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.path.endswith(("/events", "/unload")):  # a response without end; no model for those that follow
            continue
        try:
            seen |= _check_operation(operation, mode, f"http://127.0.0.1:{service.port}")
        except Unsatisfiable:  # every input of this operation is valid
            continue
        except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001 - all of them are reported together
            broken.append(f"{operation.label}: {exc}")

    assert not broken, "\n\n".join(broken)
    assert {200, 400, 404} < seen if mode is GenerationMode.POSITIVE else {400, 404} < seen
    own = [
        record.message for record in caplog.records if record.name != "stepwell.addons.jwt.verifier"
    ]  # logged by threads of other tests
    assert own == []


def narrowed(document: Any) -> Any:
    """Return the document restricted to existing models, a few streams, and inputs that fit."""
    if isinstance(document, list):
        return [narrowed(item) for item in document]
    if not isinstance(document, dict):
        return document
    if document.get("in") == "path" and document.get("name") in NAMES:
        return {**document, "schema": {"enum": NAMES[document["name"]]}}
    made = {name: narrowed(value) for name, value in document.items()}
    if isinstance(found := made.get("properties"), dict) and "seq" in found and "anyOf" in found.get("inputs", {}):
        found["inputs"] = {"enum": INPUTS}
    return made


def _check_operation(operation: Any, mode: Any, url: str) -> set[int]:
    """Return the statuses that were seen."""

    @settings(max_examples=EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), who=st.sampled_from(["full", "full", "full", "nobody"]))
    def ask(case: Any, who: str) -> None:
        parts = [str(value) for value in (case.path_parameters or {}).values()]
        assume(
            not any(mark in part for part in parts for mark in "?#")
        )  # such a character would end the path and lead to another route
        answer = case.call_and_validate(url, checks=CHECKS, headers={"Authorization": f"Bearer {who}"})
        seen.add(answer.status_code)

    seen: set[int] = set()
    ask()
    return seen
