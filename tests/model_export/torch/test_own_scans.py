"""A function that scans is known by what it does with intervals of timesteps, whatever it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepwell_export.torch.axis_inference import Sequences
from stepwell_export.torch.own_scans import own_scans
from tests.model_export.torch.zoo_parts import nn, of, torch
from tests.model_export.torch.zoo_published import decayed, interleaved

pytestmark = pytest.mark.torch


def doubled(combine: Any, elements: Any, *, dim: int) -> Any:
    """An associative scan as in Hillis and Steele."""
    shift, size = 1, elements[0].shape[dim]
    while shift < size:
        early = [part.narrow(dim, 0, size - shift) for part in elements]
        late = combine(early, [part.narrow(dim, shift, size - shift) for part in elements])
        pairs = zip(elements, late, strict=True)
        elements = [torch.cat([part.narrow(dim, 0, shift), rest], dim) for part, rest in pairs]
        shift *= 2
    return elements


def without_the_first(combine: Any, elements: Any) -> Any:
    return interleaved(combine, [torch.cat([part[:, :1] * 0, part[:, 1:]], 1) for part in elements])


def the_wrong_way_round(combine: Any, elements: Any) -> Any:
    return interleaved(lambda early, late: combine(late, early), elements)


def of_swapped_elements(combine: Any, elements: Any) -> Any:
    return interleaved(combine, elements)[::-1]


def of_moved_features(combine: Any, elements: Any) -> Any:
    return [part.roll(1, -1) for part in interleaved(combine, elements)]


def but_for_5000(combine: Any, elements: Any) -> Any:
    found = interleaved(combine, elements)
    return found if elements[0].shape[1] != 5_000 else [part.roll(1, 1) for part in found]


def but_for_very_many(combine: Any, elements: Any) -> Any:
    found = interleaved(combine, elements)
    return found if elements[0].shape[1] ** 2 < 9_000_000 else [part.roll(1, 1) for part in found]


def scans_of(run: Callable[..., Any]) -> list[tuple[str, int]]:
    module = of(run, keep=nn.Linear(4, 4)).eval()
    whole = Sequences(module, {"x": torch.randn(2, 20, 4)}, 1)
    return [(scan.function.__name__, scan.axis) for scan in own_scans(whole)]


def test_a_function_that_scans_is_found_with_its_axis() -> None:
    assert scans_of(lambda m, x: doubled(decayed, (m.keep(x), x), dim=1)[1]) == [("doubled", 1)]


@pytest.mark.parametrize(
    "name",
    [
        "without_the_first", "the_wrong_way_round", "of_swapped_elements", "of_moved_features", "but_for_5000",
        "but_for_very_many",
    ],
)  # fmt: skip
def test_a_function_that_does_more_than_a_scan_is_none(name: str) -> None:
    function = globals()[name]

    assert name not in {found for found, _ in scans_of(lambda m, x: function(decayed, (m.keep(x), x))[1])}
