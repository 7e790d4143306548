"""The counts of a trial: exact over all workers, quantiles to 10 %, each addition once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import numpy as np
import pytest

from stepwell.addons.releases.counters import OutputCounts, TrialCounts, add_counts, read_counts
from stepwell.store.state_store import StateStore
from tests.servers import Server


@pytest.fixture
async def store(shared_redis: Server) -> AsyncIterator[StateStore]:
    one = StateStore(shared_redis.url)
    yield one
    await one.close()


def soon() -> float:
    return asyncio.get_running_loop().time() + 5


def counts_of(seed: int, n: int = 1000) -> tuple[TrialCounts, np.ndarray]:
    """Return counts of random predictions, and their absolute differences."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(n, 3)).astype(np.float32)
    new = (old + rng.lognormal(-8, 3, size=(n, 3))).astype(np.float32)
    counts = TrialCounts(steps=n, lost=1, run_s=(0.5, 0.25))
    counts.compare("y:0", old, new, ["b:1", "a", "c"])
    counts.add_errors("y:0", ["b:1", "a", "c"], np.arange(21.0).reshape(3, 7) + seed)
    return counts, np.abs(old.astype(float) - new.astype(float))


async def test_the_counts_of_two_workers_are_added_up(store: StateStore) -> None:
    model = secrets.token_hex(4)
    first, differences_1 = counts_of(1)
    second, differences_2 = counts_of(2)
    differences = np.concatenate([differences_1, differences_2])

    await add_counts(store, model, 7, first, worker="a", number=1, deadline=soon())
    await add_counts(store, model, 7, second, worker="b", number=1, deadline=soon())
    found = await read_counts(store, model, 7, deadline=soon())

    y = found.outputs["y:0"]
    assert (found.steps, found.lost, found.fell_back, found.run_s) == (2000, 2, 0, (1.0, 0.5))
    assert y.max_abs == differences.max()
    assert y.sum_abs / y.numbers == pytest.approx(differences.mean(), rel=1e-12)
    assert y.quantile(0.99) == pytest.approx(np.quantile(differences, 0.99), rel=0.1)
    assert y.disagree == (first.outputs["y:0"].disagree or 0) + (second.outputs["y:0"].disagree or 0)


async def test_labels_keep_their_order_and_their_own_counts(store: StateStore) -> None:
    model = secrets.token_hex(4)
    (first, differences), (second, _) = counts_of(1), counts_of(2)
    await add_counts(store, model, 7, first, worker="a", number=1, deadline=soon())
    of_one = await read_counts(store, model, 7, deadline=soon())
    await add_counts(store, model, 7, second, worker="b", number=1, deadline=soon())
    found = await read_counts(store, model, 7, deadline=soon())

    labels = of_one.outputs["y:0"].labels
    assert [(label, one.max_abs) for label, one in labels.items()] == [
        ("b:1", differences[:, 0].max()), ("a", differences[:, 1].max()), ("c", differences[:, 2].max())
    ]  # fmt: skip
    assert labels["a"].quantile(0.99) == pytest.approx(np.quantile(differences[:, 1], 0.99), rel=0.1)
    assert list(found.errors["y:0"]) == ["b:1", "a", "c"]
    np.testing.assert_allclose(np.array([*found.errors["y:0"].values()]), 2 * np.arange(21.0).reshape(3, 7) + 3)


async def test_an_addition_that_is_sent_twice_is_made_once(store: StateStore) -> None:
    model = secrets.token_hex(4)
    counts, _ = counts_of(1)

    for number in (1, 1, 2, 2, 1):
        await add_counts(store, model, 7, counts, worker="a", number=number, deadline=soon())

    assert (await read_counts(store, model, 7, deadline=soon())).steps == 2000


async def test_a_trial_without_counts_has_zeros(store: StateStore) -> None:
    assert await read_counts(store, secrets.token_hex(4), 1, deadline=soon()) == TrialCounts()


def test_predictions_of_one_number_have_no_arg_max() -> None:
    counts = OutputCounts()
    counts.compare(np.ones((4, 1)), np.zeros((4, 1)))

    assert counts.disagree is None


def test_equal_predictions_differ_by_nothing_at_every_quantile() -> None:
    counts = OutputCounts()
    counts.compare(np.ones((4, 2)), np.ones((4, 2)))

    assert (counts.max_abs, counts.numbers, counts.quantile(0.99), counts.disagree) == (0.0, 8, 0.0, 0)


def test_numbers_that_are_not_finite_are_left_out() -> None:
    counts = OutputCounts()
    counts.compare(np.array([[1.0, np.nan]]), np.array([[2.0, 1.0]]))

    assert (counts.max_abs, counts.numbers) == (1.0, 1)
