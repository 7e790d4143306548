"""`AuditLog`: one log line for each operation that changes or deletes streams, models or keys, and who sent it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, Literal

from stepwell.errors import ServiceError
from stepwell.requests.auth.api_keys import Caller
from stepwell.requests.request_ids import log_fields
from stepwell_client.wire.ids import encode_state_id

Action = Literal[
    "reset", "reset_all", "delete", "fork", "put_state", "put_snapshot", "delete_snapshot", "import", "reload",
    "unload", "keys", "release", "promote", "abort", "move_all", "move",
]  # fmt: skip
"""What an audit line is about."""

_log: Final = logging.getLogger("stepwell.audit")


class AuditLog:
    """Writes audit lines, unless it is switched off."""

    def __init__(self, *, enabled: bool) -> None:
        """Create it.

        Args:
            enabled: The setting `audit_log`.
        """
        self._enabled = enabled

    @contextlib.contextmanager
    def operation(self, action: Action, caller: Caller, request_id: bytes, **fields: Any) -> Iterator[dict[str, Any]]:
        """Log an operation when the block ends, unless it certainly changed nothing.

        Args:
            action: The operation.
            caller: Who sent it.
            request_id: The request's id, or empty.
            fields: What it concerns; None: left out. A state id is 16 bytes.

        Yields:
            The fields, to which the block adds the result.
        """
        who = {"key_id": caller.key_id or None, "tenant": caller.tenant, **log_fields(request_id)}
        try:
            yield fields
        except ServiceError as exc:
            if exc.applied != "no" or fields.get("loaded"):
                self.write(action, **who, **fields, outcome=exc.applied, code=exc.code)
            raise
        except BaseException:
            self.write(action, **who, **fields, outcome="unknown")
            raise
        self.write(action, **who, **fields, outcome="yes")

    def keys_changed(self, before: Mapping[bytes, Caller], after: Mapping[bytes, Caller]) -> None:
        """Log which keys a changed file adds, removes and changes."""
        old, new = ({caller.key_id: (digest, caller) for digest, caller in each.items()} for each in (before, after))
        changed = {key_id for key_id in old.keys() & new.keys() if old[key_id] != new[key_id]}
        added, removed = new.keys() - old.keys(), old.keys() - new.keys()
        self.write("keys", added=_listed(added), removed=_listed(removed), changed=_listed(changed), outcome="yes")

    def write(self, action: Action, **fields: Any) -> None:
        """Write one line.

        Args:
            action: The operation.
            fields: What it concerns; None: left out. A state id is 16 bytes.
        """
        if self._enabled:
            texts = {name: _plain(value) for name, value in fields.items() if value is not None}
            _log.info("%s", action, extra={"action": action, **texts})


def _listed(names: Collection[str]) -> str | None:
    return ", ".join(sorted(names)) or None


def _plain(value: Any) -> Any:
    return encode_state_id(value) if isinstance(value, bytes) else value
