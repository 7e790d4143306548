"""`BatchSampler` collects every batch at a low load, and about a limit's worth at a high one."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.addons.drift.sampler import MAX_TIMESTEPS, BatchSampler


def offer(sampler: BatchSampler, batches: int, rows: int = 1) -> None:
    x, names = np.zeros((rows, 1, 2), np.float32), [f"s{i}" for i in range(rows)]
    for _ in range(batches):
        sampler.add(names, {"x": x}, {"y": x})


def collected(sampler: BatchSampler) -> int:
    batches, _ = sampler.drain()
    return sum(len(batch.names) for batch in batches)


def test_all_batches_are_collected_at_a_low_load() -> None:
    sampler = BatchSampler(4, 4)
    offer(sampler, 500)

    assert collected(sampler) == 500
    offer(sampler, 20, rows=100)
    assert collected(sampler) == 2000


def test_the_number_of_collected_timesteps_follows_the_limit_at_a_high_load() -> None:
    sampler = BatchSampler(4, 4)
    found = []
    for _ in range(12):
        offer(sampler, 40_000)
        found.append(collected(sampler))

    assert max(found) <= 2 * MAX_TIMESTEPS
    assert all(0.6 * MAX_TIMESTEPS <= n <= 1.5 * MAX_TIMESTEPS for n in found[6:])


def test_after_a_high_load_all_batches_are_collected_again() -> None:
    sampler = BatchSampler(4, 4)
    for _ in range(8):
        offer(sampler, 40_000)
        collected(sampler)
    for _ in range(4):
        offer(sampler, 100)
        collected(sampler)
    offer(sampler, 100)

    assert collected(sampler) == 100


@pytest.mark.parametrize(("n_features", "row_values", "limit"), [(4, 4, 2048), (64, 64, 512), (64, 262_144, 4)])
def test_a_model_with_more_numbers_has_fewer_timesteps(n_features: int, row_values: int, limit: int) -> None:
    assert BatchSampler(n_features, row_values).drain()[1] == limit
