"""`Coverage`: which decisions of the original the compared runs took, both ways or one way only."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.decisions.record import Decision, Observed, Observer


class Coverage:
    """Collects what an original decided in the runs that were compared.

    Attributes:
        seen: It.
        failure: Why decisions cannot be recorded; empty where they can.
    """

    def __init__(self, observer: Observer | None) -> None:
        self.seen = Observed()
        self.failure = "" if observer is not None else "the original cannot be looked into here"
        self._observer = observer

    def observe(self, data: Mapping[str, Array]) -> bool:
        """Run the original on compared sequences; return whether a decision went a way that it had not gone."""
        if self._observer is None or self.failure:
            return False
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            return self.seen.add(self._observer(data))
        except Exception as exc:  # noqa: BLE001  # the observer runs the framework's code in an unusual way
            reason = next(iter(str(exc).strip().splitlines()), "")[:200].rstrip(".")
            self.failure = f"recording them fails: {type(exc).__name__}: {reason}"
            return False
        finally:
            logging.disable(before)

    @property
    def open(self) -> list[Decision]:
        """The decisions that went one way only."""
        return self.seen.one_sided

    @property
    def is_of_sizes(self) -> bool:
        """Whether there are decisions of sizes alone, which are settled only where runs of several lengths agree."""
        return any(decision.sizes for decision in self.seen.decisions.values())
