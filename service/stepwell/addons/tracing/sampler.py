"""`TraceSampler`: decides which requests are traced, by `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from stepwell.addons.tracing.ids import is_sampled, new_span_id

_log = logging.getLogger(__name__)
_DEFAULT: Final = "parentbased_always_off"
_RATES: Final = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}  # None: the argument
_PARENT_BASED: Final = "parentbased_"


@dataclass(frozen=True, slots=True)
class TraceSampler:
    """Decides which requests are traced.

    Deciding by the SDK's own samplers would cost a microsecond for each request.

    Attributes:
        rate: Share of the traces that are sampled, 0 to 1.
        follows_parent: A request with a `traceparent` is traced if its caller's span is, whatever the rate.
    """

    rate: float
    follows_parent: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> TraceSampler:
        """Return the sampler that the variables name; an invalid value is logged, and the default used.

        By default only requests whose caller has sampled them are traced; the SDK would trace all others, too.
        """
        name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or _DEFAULT
        kind = name.removeprefix(_PARENT_BASED)
        if kind not in _RATES:
            _log.warning("OTEL_TRACES_SAMPLER is %r, which is not supported; using %s", name, _DEFAULT)
            return cls(0.0, follows_parent=True)
        rate = _RATES[kind]
        if rate is None:
            rate = _ratio(environment.get("OTEL_TRACES_SAMPLER_ARG", ""))
        return cls(rate, follows_parent=name.startswith(_PARENT_BASED))

    def continues(self, traceparent: bytes) -> bool:
        """Return whether a request with a valid `traceparent` is traced."""
        if self.follows_parent:
            return is_sampled(traceparent)
        return self._is_in_sample(int(traceparent[19:35], 16))

    def sample_root(self) -> int:
        """Return the trace id of a request without `traceparent`; 0: it is not traced."""
        if random.random() >= self.rate:  # noqa: S311 - no secret; before an id is made: most requests are not traced
            return 0
        return (new_span_id() << 64) | int(random.random() * self.rate * 2**64)  # noqa: S311 - as above

    def _is_in_sample(self, low_bits: int) -> bool:
        """Decide by the lower 64 bits of a trace id, as the SDK does: all services decide alike."""
        return low_bits < self.rate * 2**64


def _ratio(text: str) -> float:
    try:
        ratio = float(text or "1")
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        _log.warning("OTEL_TRACES_SAMPLER_ARG is %r; expected a number from 0 to 1; using 1", text)
        return 1.0
    return ratio
