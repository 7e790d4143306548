"""Zoo: `keras.ops` in functional models."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, of, ops


def operations(x: Any) -> Any:
    h = L.GRU(6, return_sequences=True)(x)
    gate = ops.sigmoid(h[..., :3]) * ops.tanh(h[..., 3:]) + 0.1
    norm = gate / ops.sqrt(ops.sum(ops.square(gate), axis=-1, keepdims=True) + 1e-3)
    picked = ops.where(norm > 0.2, ops.maximum(norm, 0.5), ops.exp(-norm))
    return ops.concatenate([picked, ops.clip(h, -0.2, 0.2), 1.0 - ops.abs(gate)], axis=-1)


def whole_numbers(x: Any) -> Any:
    """Rounding, truths and counting: what comes out is a whole number, computed from one."""
    whole = ops.round(x * 3.0)
    small = ops.cast(ops.clip(whole, 0, 3), "int32")
    truths = [
        ops.logical_and(whole > 0, whole < 3), ops.logical_or(whole > 2, whole < -2), ops.logical_xor(whole > 0, x > 1),
        ops.logical_not(whole >= 1), ops.isfinite(whole), ops.isnan(whole), ops.not_equal(small, 1), small <= 1,
    ]  # fmt: skip
    numbers = [
        ops.floor(whole / 2.0), ops.ceil(whole / 2.0), ops.trunc(whole / 2.0), ops.mod(whole, 2.0), small // 2,
        ops.floor_divide(whole, 2.0), ops.one_hot(small, 4)[..., 1], ops.where(small > 1, small, 7),
        ops.full_like(whole, 2.5), ops.take(np.arange(4.0, dtype="float32"), small),
    ]  # fmt: skip
    return ops.concatenate([ops.cast(part, "float32") for part in truths + numbers], axis=-1)


def along_axes(x: Any) -> Any:
    """Reductions and orders along feature axes."""
    m = L.Reshape((-1, 3, 4))(x)
    reduced = [
        ops.sum(m, axis=-1), ops.mean(m, axis=2), ops.max(m, axis=(2, 3), keepdims=True)[..., 0], ops.min(m, axis=-1),
        ops.prod(m, axis=-1), ops.var(m, axis=-1), ops.std(m, axis=-2), ops.logsumexp(m, axis=-1),
        ops.average(m, axis=-1, weights=np.arange(1.0, 5.0)),
        ops.sort(m, axis=-1)[..., 0], ops.top_k(m, 2)[0][..., 1], ops.cumsum(m, axis=-1)[..., -1],
        ops.softmax(m, axis=2)[..., 0], ops.log_softmax(m)[..., 0], ops.normalize(m, axis=-1)[..., 0],
        ops.glu(m, axis=-1)[..., 0], ops.flip(m, axis=-1)[..., 0], ops.roll(m, 1, axis=3)[..., 0],
        ops.squeeze(ops.expand_dims(m, -1), -1)[..., 2], ops.count_nonzero(m > 0, axis=-1), ops.argmax(m, axis=-1),
        ops.any(m > 1, axis=-1), ops.all(m > -1, axis=2),
    ]  # fmt: skip
    return ops.concatenate([ops.cast(part, "float32") for part in reduced], axis=-1)


def shapes_of_features(x: Any) -> Any:
    """Shapes of features: batch and time stay in front."""
    m = L.Reshape((-1, 2, 3))(x)
    parts = [
        ops.transpose(m, (0, 1, 3, 2)), ops.moveaxis(m, -1, 2), ops.swapaxes(m, 2, 3),
        ops.stack([m[..., 0], m[..., 1]], axis=2), ops.repeat(m, 2, axis=2), ops.tile(m, (1, 1, 1, 2)),
        ops.take(m, [0, 0, 1], axis=2),
        ops.concatenate(ops.split(m, 3, axis=-1)[::-1], axis=-1), ops.unstack(m, axis=2)[1], m[:, :, None, 0, 1:],
        ops.pad(m, ((0, 0), (0, 0), (1, 0), (0, 2))), ops.append(m, m, axis=3),
    ]  # fmt: skip
    flat = [L.Reshape((-1, int(np.prod(part.shape[2:]))))(part) for part in parts]
    return L.GRU(3, **RS)(ops.concatenate(flat, axis=-1))


def products(x: Any) -> Any:
    """Matrix products, Einstein sums and EinsumDense; with weights, and of two values inside one timestep."""
    m = L.Reshape((-1, 2, 3))(x)
    weights = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    parts = [
        ops.matmul(m, weights),
        ops.matmul(m, ops.transpose(m, (0, 1, 3, 2))),
        ops.einsum("btij,jk->btik", m, weights),
        ops.einsum("btij,btkj->btik", m, ops.tanh(m)),
        ops.tensordot(m, weights, axes=[[3], [0]]),
        L.EinsumDense("abcd,de->abce", output_shape=(None, 2, 5), bias_axes="e", activation="relu")(m),
        L.Reshape((-1, 4, 1))(L.EinsumDense("...d,de->...e", output_shape=4)(x)),
        ops.dot(m, weights),
    ]
    flat = [L.Reshape((-1, int(np.prod(part.shape[2:]))))(part) for part in parts]
    return L.LSTM(3, **RS)(ops.concatenate(flat, axis=-1))


def spectra() -> Any:
    """A mask on the spectrum of each frame."""
    x = keras.Input((None, 8), name="x")
    real, imaginary = ops.rfft(x)
    kept = L.Dense(5, "sigmoid")(L.GRU(4, **RS)(real * real + imaginary * imaginary))
    return keras.Model(x, [ops.irfft((real * kept, imaginary * kept)), ops.rfft(x, fft_length=6)[0]])


class Shifted(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """The timestep before, as code for any batch writes it."""

    def call(self, x: Any) -> Any:
        return ops.concatenate([ops.zeros((ops.shape(x)[0], 1, x.shape[2])), x[:, :-1]], axis=1)


def shifts(x: Any) -> Any:
    """The timestep before, and the one before that, by several ways of saying so."""
    first = x[:, :1]
    return L.Concatenate()(
        [
            ops.concatenate([ops.zeros_like(first), x[:, :-1]], axis=1),
            L.Concatenate(axis=1)([first, x[:, :-1]]),
            ops.concatenate([ops.zeros_like(first), x], axis=1)[:, :-1],
            L.ZeroPadding1D((2, 0))(x[:, :-2]),
            Shifted()(x),
        ]
    )


def differences(x: Any) -> Any:
    """What changed since the timestep before, padded in front again, in front of recurrent layers."""
    change = L.LayerNormalization()(x[:, 1:] - x[:, :-1])
    parts = [
        ops.pad(change, ((0, 0), (1, 0), (0, 0)), constant_values=0.5),
        ops.concatenate([x[:, :1], ops.diff(x, axis=1)], axis=1),
        ops.pad(x[:, 3:] * x[:, :-3], ((0, 0), (3, 0), (0, 0))),
        L.Conv1D(2, 3)(L.ZeroPadding1D((3, 0))(ops.tanh(ops.diff(x, axis=1)))),
    ]
    return L.GRU(3, **RS)(ops.concatenate(parts, axis=-1))


def since_the_first(x: Any) -> Any:
    """What changed since the first timestep, and a state that starts from it."""
    return L.GRU(3, **RS)(x - x[:, :1], initial_state=L.Dense(3)(x[:, 0]))


ZOO: dict[str, ZooModel] = {
    "since_the_first": ZooModel(
        lambda: of(since_the_first), "x - x[:, :1], and x[:, 0] as the initial state", "the first timestep"
    ),
    "shifts": ZooModel(
        lambda: of(shifts),
        "x[:, :-1] with zeros or the first timestep in front of it",
        "the timestep before; the first one",
    ),
    "differences": ZooModel(
        lambda: of(differences),
        "x[:, 1:] - x[:, :-1] or ops.diff over time, padded in front again",
        "the timestep before; the position in the stream",
        rows_alike=False,
    ),
    "spectra": ZooModel(spectra, "ops.rfft and ops.irfft of each timestep", "products with cosines and sines"),
    "operations": ZooModel(
        lambda: of(operations),
        "keras.ops in a functional model: arithmetic, where, clip, sums",
        "no state",
        rows_alike=False,
    ),
    "whole_numbers": ZooModel(
        lambda: of(whole_numbers),
        "keras.ops that round, compare, count and look up",
        "no state",
    ),
    "along_axes": ZooModel(
        lambda: of(along_axes, features=12),
        "keras.ops along feature axes: reductions, sorting, softmax, running sums",
        "no state",
        rows_alike=False,
    ),
    "shapes_of_features": ZooModel(
        lambda: of(shapes_of_features, features=6),
        "keras.ops that change the shape of features",
        "no state",
    ),
    "products": ZooModel(
        lambda: of(products, features=6),
        "ops.matmul, ops.einsum, ops.tensordot, EinsumDense",
        "no state",
        rows_alike=False,
    ),
}
