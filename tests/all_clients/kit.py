"""The conformance cases of `clients/conformance.json`: reading them, and comparing what came back."""

from __future__ import annotations

import itertools
import json
import secrets
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "clients" / "conformance.json"
KIT = json.loads(FILE.read_text())
PATH = f"/v1/models/{KIT['model']}"
_numbers = itertools.count(1)
_RUN = secrets.token_hex(4)
_OF_ONE_ATTEMPT = {"replayed", "created"}  # a replay has the one and lacks the other


class Case:
    """One run of a case: the names of its streams, and the responses that later actions refer to."""

    def __init__(self, case: dict[str, Any], *, under_faults: bool = False) -> None:
        """Begin a run.

        Args:
            case: A case of the file.
            under_faults: Whether requests may have to be sent again; then each carries what identifies it, and what a
                repetition changes in a response is not compared.
        """
        self.case = case
        self.under_faults = under_faults
        self.saved: dict[str, Any] = {}
        self._prefix = f"{_RUN}-{next(_numbers)}"

    def stream(self, name: str = "a") -> str:
        """Return the id of the case's stream `a` or `b`, which no other case and no other run uses."""
        return f"{self._prefix}-{name}"

    def fill(self, value: Any) -> Any:
        """Return a value of the file with names of streams, saved responses and special numbers put in."""
        if isinstance(value, dict):
            if set(value) == {"number"}:
                return float(value["number"])
            return {self._text(name): self.fill(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.fill(member) for member in value]
        if isinstance(value, str) and value.startswith("$"):
            saved, _, member = value[1:].partition(".")
            return self.saved[saved][member]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        for name in ("a", "b"):
            text = text.replace(f"{{id:{name}}}", self.stream(name))
            text = text.replace(f"{{{name}}}", f"{PATH}/streams/{self.stream(name)}")
        return text.replace("{model}", PATH)

    def request(self, action: dict[str, Any]) -> tuple[str, str, Any, str | None]:
        """Return the method, the path, the body and the idempotency key of an action."""
        method, path = self.fill(action["send"]).split()
        body, key = self.fill(action.get("body")), action.get("key")
        if self.under_faults and key is None and method != "GET" and not (body or {}).keys() & {"seq", "after"}:
            key = secrets.token_hex(8)
        return method, path, body, key and key.replace("{a}", self.stream())

    def check(self, action: dict[str, Any], found: Any) -> None:
        """Compare a response, or the fields of an error, with the expected one; save it if the action names it."""
        expected = self.fill(action["error"] if "error" in action else action.get("expect"))
        absent = set(action.get("absent", ()))
        if self.under_faults:
            expected, absent = _after_repetitions(expected, found), absent - _OF_ONE_ATTEMPT
        if expected:
            differs = differences(expected, found)
            assert not differs, f"{action}: {'; '.join(differs)}"
        assert not [name for name in absent if name in found], f"{action}: {found}"
        if "as" in action:
            self.saved[action["as"]] = found


def _after_repetitions(expected: Any, found: Any) -> Any:
    """Return what is expected of a request that may have been sent several times."""
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [_after_repetitions(*pair) for pair in zip(expected, found, strict=True)]
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return expected
    members = {name: one for name, one in expected.items() if name not in _OF_ONE_ATTEMPT}
    if members.get("applied") == "no" and found.get("applied") == "unknown":
        members["applied"] = "unknown"  # an earlier attempt without an answer may have been applied
    return {name: _after_repetitions(one, found.get(name)) for name, one in members.items()}


def differences(expected: Any, found: Any, where: str = "it") -> list[str]:
    """Return how a value differs from the expected one; members of objects that are not expected are ignored."""
    if isinstance(expected, dict) and isinstance(found, dict):
        members = expected.items()
        return [each for name, one in members for each in differences(one, found.get(name), f"{where}.{name}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [each for i, (one, other) in pairs for each in differences(one, other, f"{where}[{i}]")]
    same = expected == found and isinstance(expected, bool) == isinstance(found, bool)
    return [] if same else [f"{where} is {found!r}, expected {expected!r}"]
