"""Every sequence graph that the tests step: small, of every kind, written by hand as exporters write them."""

from __future__ import annotations

from tests.model_export.merging import merged
from tests.model_export.streaming import zoo_masked, zoo_pooling, zoo_recurrent, zoo_shapes, zoo_shifts, zoo_time
from tests.model_export.streaming.zoo_parts import Entry

ZOO: dict[str, Entry] = merged(
    zoo_recurrent.ZOO, zoo_masked.ZOO, zoo_time.ZOO, zoo_pooling.ZOO, zoo_shapes.ZOO, zoo_shifts.ZOO
)
