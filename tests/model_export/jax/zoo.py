"""Functions of JAX over whole sequences: small, of every kind, with weights that leave nothing at its default."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from stepwell_export.spec import StepSpec

Zoo = dict[str, Callable[[], StepSpec]]

_RNG = np.random.default_rng(7)
FEATURES, UNITS = 3, 5


def weights(*shape: int, scale: float = 0.5) -> Any:
    return jnp.asarray(_RNG.standard_normal(shape).astype(np.float32) * scale)


def example(*shape: int) -> Any:
    return np.zeros((2, 20, *(shape or (FEATURES,))), np.float32)


# ---------------------------------------------------------------- recurrences


def lstm(w: Any, u: Any, b: Any, head: Any, x: Any) -> Any:
    """Return the answer of every timestep, `(B, T, ..)`."""

    def cell(carry: Any, row: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(row @ w + h @ u + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], UNITS))
    _, found = lax.scan(cell, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(found, 0, 1) @ head


def last_of_gru(w: Any, u: Any, x: Any) -> Any:
    """Return the answer for the sequence, from a state that is not zero."""

    def cell(h: Any, row: Any) -> Any:
        z = jax.nn.sigmoid(row @ w[0] + h @ u[0])
        r = jax.nn.sigmoid(row @ w[1] + h @ u[1])
        h = (1 - z) * jnp.tanh(row @ w[2] + (r * h) @ u[2]) + z * h
        return h, None

    start = jnp.broadcast_to(jnp.linspace(-1, 1, UNITS), (x.shape[0], UNITS))
    final, _ = lax.scan(cell, start, jnp.swapaxes(x, 0, 1))
    return jax.nn.softmax(final, axis=-1)


def of_each_row(w: Any, x: Any) -> Any:
    """One row's function under `jax.vmap`, as Equinox has it."""

    def one(rows: Any) -> Any:
        return lax.scan(lambda h, row: (jnp.tanh(h * 0.9 + row @ w),) * 2, jnp.zeros(UNITS), rows)[1]

    return jax.vmap(one)(x)


def time_first(w: Any, x: Any) -> Any:
    return lax.scan(lambda h, row: ((h := jnp.tanh(0.5 * h + row @ w)), h), jnp.zeros((x.shape[1], UNITS)), x)[1]


def counted(x: Any) -> Any:
    """A latch and a counter of integers in one carry."""

    def cell(carry: Any, row: Any) -> Any:
        n, alarm = carry
        alarm = alarm | (row[:, 0] > 1)
        n = jnp.where(row[:, 1] > 0, n + 1, 0)
        return (n, alarm), jnp.where(alarm, n.astype(jnp.float32), row[:, 2])

    rows = x.shape[0]
    carry = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    return jnp.swapaxes(lax.scan(cell, carry, jnp.swapaxes(x, 0, 1))[1], 0, 1)[..., None]


# ---------------------------------------------------------------- convolutions, attention, sums


def causal(w: Any, x: Any) -> Any:
    padded = jnp.pad(x, ((0, 0), (4, 0), (0, 0)))
    numbers = lax.conv_dimension_numbers(padded.shape, w.shape, ("NWC", "WIO", "NWC"))
    return jax.nn.gelu(
        lax.conv_general_dilated(padded, w, (1,), [(0, 0)], rhs_dilation=(2,), dimension_numbers=numbers)
    )


def attended(w: Any, x: Any) -> Any:
    """Attention to itself and what came before, over a declared length."""
    q, k, v = jnp.split(x @ w, 3, axis=-1)
    scores = jnp.einsum("btd,bsd->bts", q, k) / jnp.sqrt(q.shape[-1])
    places = jnp.arange(x.shape[1])
    scores = jnp.where(places[:, None] >= places, scores, -jnp.inf)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores, axis=-1), v)


def so_far(x: Any) -> Any:
    counts = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[:, None]
    return jnp.cumsum(x, axis=1) / counts


def embedded(table: Any, u: Any, ids: Any) -> Any:
    rows = jnp.swapaxes(jnp.take(table, ids, axis=0), 0, 1)
    return jnp.swapaxes(lax.scan(lambda h, e: ((h := jnp.tanh(h @ u + e)), h), rows[0] * 0, rows)[1], 0, 1)


def scale_first(scale: Any, x: Any) -> Any:
    """An array of one row and one timestep, on the left of whole sequences."""
    return jnp.reshape(scale, (1, 1, -1)) / (2 + jnp.exp(x)) - jnp.reshape(scale, (1, 1, -1)) * x


def binned(x: Any) -> Any:
    """The bin of each feature, from the right and from the left, and what the largest one is."""
    bounds = jnp.asarray([-0.5, 0.0, 0.7])
    bins = [jnp.digitize(x, bounds), jnp.searchsorted(bounds, x, side="left")]
    signs = jnp.signbit(jnp.round(x / 2))
    return jnp.concatenate([*bins, signs], axis=-1).astype(jnp.float32)


def normalised(x: Any) -> Any:
    pairs = jnp.stack([x, -x], axis=-1)
    both = jax.nn.softmax(pairs, axis=(-2, -1))
    part = jax.nn.softmax(x, axis=-1, where=np.arange(x.shape[-1]) > 0)
    return jnp.concatenate([both[..., 0], part, jax.nn.log_softmax(x, axis=-1)], axis=-1)


def whole_numbers(ids: Any) -> Any:
    """Quotients and rests, also of 0, sums that wrap around, powers, and floats that no integer holds."""
    counted = [ids // (ids % 3), ids % (ids % 2), ids % 1000, ids**0, jnp.sum(ids * ids, -1, keepdims=True)]
    floats = ids.astype(jnp.float32) * 1e3
    parts = [part % 1000 for part in (*counted, floats.astype(jnp.int32), floats.astype(jnp.uint8).astype(jnp.int32))]
    truths = [jnp.prod(ids > 0, -1, keepdims=True), jnp.argmax(ids > 0, -1)[..., None], jnp.sort(ids > 0, -1)]
    return jnp.concatenate([*parts, *truths], -1).astype(jnp.float32)


def spread(x: Any) -> Any:
    """The variance over features, and that over time as its moments."""
    over_time = jnp.mean(x * x, axis=1) - jnp.mean(x, axis=1) ** 2
    return jnp.concatenate([over_time, jnp.var(x, axis=2)[:, -1:]], axis=-1)


def with_a_static(w: Any, x: Any, site: Any) -> Any:
    return jnp.tanh(x @ w + site[:, None])


def _spec(function: Callable[..., Any], *given: Any, **more: Any) -> Callable[[], StepSpec]:
    return lambda: StepSpec(partial(function, *given), **{"inputs": {"x": example()}, "time_axis": 1, **more})


ZOO: Zoo = {
    "lstm": _spec(lstm, weights(FEATURES, 4 * UNITS), weights(UNITS, 4 * UNITS), weights(4 * UNITS), weights(UNITS, 2)),
    "last_of_gru": _spec(last_of_gru, weights(3, FEATURES, UNITS), weights(3, UNITS, UNITS)),
    "of_each_row": _spec(of_each_row, weights(FEATURES, UNITS)),
    "time_first": _spec(
        time_first, weights(FEATURES, UNITS), inputs={"x": np.zeros((20, 2, 3), np.float32)}, time_axis=0
    ),
    "counted": _spec(counted),
    "causal": _spec(causal, weights(3, FEATURES, UNITS)),
    "attended": _spec(attended, weights(FEATURES, 12), length=16),
    "so_far": _spec(so_far),
    "embedded": _spec(embedded, weights(11, UNITS), weights(UNITS, UNITS), inputs={"ids": np.zeros((2, 20), np.int32)}),
    "scale_first": _spec(scale_first, weights(FEATURES)),
    "binned": _spec(binned),
    "normalised": _spec(normalised),
    "whole_numbers": _spec(whole_numbers, inputs={"ids": np.zeros((2, 20, 3), np.int32)}),
    "spread": _spec(spread),
    "with_a_static": _spec(
        with_a_static, weights(FEATURES, UNITS), inputs={"x": example(), "site": np.zeros((2, UNITS), np.float32)}
    ),
}
