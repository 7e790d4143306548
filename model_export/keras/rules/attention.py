"""Rules of attention layers: over time with a cache of past keys and values, inside one timestep as it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support.attention_cache import NEVER, AttentionCache, attention_cache
from model_export.keras.value import Value
from model_export.manifest import Array


@dataclass(frozen=True, slots=True)
class _Asked:
    """One call of an attention layer.

    Attributes:
        query: The queries.
        key: What is compared with the query.
        value: What is answered with.
        past: Which timesteps are looked at; None: it attends inside one timestep, or to something static.
        mask: Who may look at whom inside one timestep, shape `(queries, keys)` bool; None: all.
        counts: Whether this timestep may be looked at, shape `(batch,)` bool; None: always.
    """

    query: Value
    key: Value
    value: Value
    past: AttentionCache | None
    mask: Array | None
    counts: str | None = None

    @property
    def queries(self) -> int:
        """How many queries one timestep has."""
        return 1 if len(self.query.row) == 1 else self.query.row[0]


# ---------------------------------------------------------------- many heads, with projections


@rule("MultiHeadAttention", "GroupQueryAttention", masks=True)
def multi_head_attention(call: Call) -> Value:
    """Attention with projections; several heads of the query may share one of key and value."""
    layer = call.layer
    given = inspect.signature(layer.call).bind(*call.args, **call.kwargs).arguments
    axes = tuple(getattr(layer, "_attention_axes", None) or (1,))
    if len(axes) != 1:
        raise call.refuse(f"it attends over several axes at once ({list(axes)}); expected one")
    if axes != (1,) and given.get("use_causal_mask"):
        raise call.refuse(f"it attends over axis {axes[0]}, and use_causal_mask=True masks axis 1")
    if call.mask is not None or any(given.get(f"{name}_mask") is not None for name in ("query", "value", "key")):
        raise call.refuse(
            "a mask reaches it, and there a masked timestep looks at the whole sequence",
            "Leave masking out and send only timesteps that count: a stream has no padding.",
        )
    asked = _asked(call, given, axes[0])
    to_query, to_key, to_value = layer._query_dense, layer._key_dense, layer._value_dense
    heads, width = to_array(to_key.kernel).shape[1:]
    groups, answer = to_array(to_query.kernel).shape[1] // heads, to_array(to_value.kernel).shape[2]
    flat = [
        _project(call, x, dense) for x, dense in ((asked.query, to_query), (asked.key, to_key), (asked.value, to_value))
    ]
    found = _attend(call, asked, flat, heads=(heads, groups), widths=(width, answer), scale=1 / math.sqrt(width))
    if getattr(layer, "_use_gate", getattr(layer, "use_gate", False)):
        found = call.op("Mul", found, call.op("Sigmoid", _project(call, asked.query, layer._gate_dense)))
    return _project_out(call, asked.query, found, layer._output_dense)


def _attend(
    call: Call, asked: _Asked, flat: Sequence[str], *, heads: tuple[int, int], widths: tuple[int, int], scale: float
) -> str:
    """Return the answers of all heads side by side.

    Args:
        call: The layer or operation.
        asked: The call.
        flat: Queries, keys and values, with the heads side by side.
        heads: Those of keys and values, and how many of the queries each of them serves.
        widths: Of one head: that of queries and keys, and that of values.
        scale: What the scores are multiplied by.
    """
    (count, groups), (width, answer), (q, k, v) = heads, widths, flat
    q = call.op("Mul", _by_head(call, q, asked.queries, heads, width), call.constant(scale))
    k, v = _kept(call, asked, "keys", k, (count, width)), _kept(call, asked, "values", v, (count, answer))
    scores = call.op("MatMul", q, call.op("Transpose", k, perm=[0, 1, 3, 2]))
    return _side_by_side(call, _answer(call, asked, scores, v, groups), asked, heads, answer)


def _project(call: Call, x: Value, dense: Any) -> str:
    """Return the projection for all heads side by side, shape `(batch, [positions,] heads * width)`."""
    kernel = to_array(dense.kernel)
    bias = None if dense.bias is None else to_array(dense.bias).reshape(-1)
    return _times(call, x.name, len(x.row), kernel.reshape(kernel.shape[0], -1), bias)


def _times(call: Call, x: str, axes: int, matrix: Array, bias: Array | None) -> str:
    added = [] if bias is None else [call.constant(bias)]
    if axes == 1:
        return call.op("Gemm", x, call.constant(matrix), *added)
    y = call.op("MatMul", x, call.constant(matrix))
    return call.op("Add", y, *added) if added else y


def _by_head(call: Call, x: str, positions: int, heads: tuple[int, int], width: int) -> str:
    """Return `(batch, heads, groups * positions, width)` of what stands side by side."""
    if positions > 1:
        x = call.reshape(x, [positions, *heads, width])
        x = call.op("Transpose", x, perm=[0, 2, 3, 1, 4])
    return call.reshape(x, [heads[0], heads[1] * positions, width])


def _side_by_side(call: Call, x: str, asked: _Asked, heads: tuple[int, int], width: int) -> str:
    """Undo `_by_head`, for the answers to the queries."""
    if asked.queries > 1:
        x = call.reshape(x, [*heads, asked.queries, width])
        x = call.op("Transpose", x, perm=[0, 3, 1, 2, 4])
    return call.reshape(x, [*asked.query.row[:-1], math.prod(heads) * width])


def _kept(call: Call, asked: _Asked, name: str, x: str, shape: tuple[int, int]) -> str:
    """Return keys or values, shape `(batch, heads, keys, width)`: those of the timesteps looked at, oldest first."""
    heads, width = shape
    if asked.past is None:
        return _by_head(call, x, asked.key.row[0], (heads, 1), width)
    return asked.past.append(call, name, _by_head(call, x, 1, (heads, 1), width), shape)


def _project_out(call: Call, query: Value, found: str, dense: Any) -> Value:
    kernel = to_array(dense.kernel)
    matrix = kernel.reshape(math.prod(kernel.shape[:2]), -1)
    y = _times(call, found, len(query.row), matrix, None if dense.bias is None else to_array(dense.bias).reshape(-1))
    row = (*query.row[:-1], *kernel.shape[2:])
    return query.like(y if kernel.ndim == 3 else call.reshape(y, row), row=row)


@op_rule("DotProductAttention")
def dot_product_attention(call: Call) -> Value:
    """`ops.dot_product_attention`: several heads, without projections."""
    given = inspect.signature(call.layer.call).bind(*call.args, **call.kwargs).arguments
    if given.get("bias") is not None or getattr(call.layer, "attn_logits_soft_cap", None):
        raise call.refuse("it has a bias or a soft cap", "Use MultiHeadAttention.")
    (heads, width), (count, answer) = given["query"].row[-2:], given["value"].row[-2:]
    flat = {
        name: call.reshaped(x, (*x.row[:-2], math.prod(x.row[-2:])))
        for name, x in given.items()
        if name in {"query", "key", "value"}
    }
    causal = {"use_causal_mask": call.layer.is_causal, "attention_mask": given.get("mask")}
    asked = _asked(call, {**flat, **causal}, 1)
    scale = 1 / math.sqrt(width) if given.get("scale") is None else given["scale"]
    names = [value.name for value in (asked.query, asked.key, asked.value)]
    found = _attend(call, asked, names, heads=(count, heads // count), widths=(width, answer), scale=scale)
    row = (*asked.query.row[:-1], heads, answer)
    return asked.query.like(call.reshape(found, row), row=row)


# ---------------------------------------------------------------- one head, without projections


@rule("Attention", "AdditiveAttention", masks=True)
def attention(call: Call) -> Value:
    """Attention on the values as they are, by product or by a sum."""
    inputs = [call.as_float(value) for value in call.values]
    if not all(value.row for value in inputs):
        raise call.refuse("its inputs have no feature axis")
    query, value, key = inputs[0], inputs[1], inputs[-1]
    asked = _asked(call, {**call.kwargs, "query": query, "value": value, "key": key}, query.rank - 2)
    asked = replace(asked, counts=_counts(call, query, value))
    q = call.reshape(query, [1, asked.queries, query.row[-1]])
    k = v = _kept(call, asked, "keys", key.name, (1, key.row[-1]))
    if value.name != key.name:
        v = _kept(call, asked, "values", value.name, (1, value.row[-1]))
    found = _answer(call, asked, _scores(call, q, k), v)
    row = (*query.row[:-1], value.row[-1])
    found = call.reshape(found, row)
    if query.mask is not None:
        mask = call.reshape(query.mask, [1 for _ in row])
        found = call.op("Where", mask, found, call.constant(0.0))
    return query.like(found, row=row, mask=query.mask)


def _counts(call: Call, query: Value, value: Value) -> str | None:
    """Return whether this timestep may be looked at, from the masks that the inputs carry."""
    if (call.mask is not None and query.mask is value.mask is None) or (
        query.time and value.mask not in {None, query.mask}
    ):
        raise call.refuse(
            "its values are masked and its queries are not, so a query that finds no value looks at the whole sequence",
            "Mask both or neither.",
        )
    return value.mask


def _scores(call: Call, q: str, k: str) -> str:
    layer = call.layer
    scale = None if layer.scale is None else call.constant(layer.scale)
    if isinstance(layer, keras.layers.AdditiveAttention):
        sums = call.op("Tanh", _sums(call, q, k))
        return _summed(call, call.op("Mul", sums, scale) if scale else sums)
    if layer.score_mode == "concat":
        sums = _sums(call, q, k)
        summed = _summed(call, call.op("Tanh", call.op("Mul", sums, scale) if scale else sums))
        return call.op("Mul", summed, call.constant(layer.concat_score_weight))
    scores = call.op("MatMul", q, call.op("Transpose", k, perm=[0, 1, 3, 2]))
    return call.op("Mul", scores, scale) if scale else scores


def _sums(call: Call, q: str, k: str) -> str:
    return call.op("Add", call.op("Unsqueeze", q, call.graph.ints([3])), call.op("Unsqueeze", k, call.graph.ints([2])))


def _summed(call: Call, x: str) -> str:
    return call.op("ReduceSum", x, call.graph.ints([-1]), keepdims=0)


# ---------------------------------------------------------------- both


def _asked(call: Call, given: dict[str, Any], axis: int) -> _Asked:
    """Sort out who attends to what.

    Args:
        call: The layer.
        given: The arguments of its call, `query`, `value` and `key` among them.
        axis: The axis of the original that it attends over.

    Raises:
        RefusedModelError: It needs timesteps that have not come yet, or ones that are not kept.
    """
    query, value = call.as_float(given["query"]), call.as_float(given["value"])
    key = call.as_float(given.get("key", value))
    if given.get("return_attention_scores"):
        raise call.refuse("it also returns its scores, which have a column for each timestep", "Leave the scores out.")
    mask, causal = given.get("attention_mask"), bool(given.get("use_causal_mask"))
    if isinstance(mask, Value):
        raise call.refuse(
            "its attention_mask is computed from what comes in",
            "Use use_causal_mask=True, or a constant mask that is the same for every sequence.",
        )
    allowed = None if mask is None else _pairs(call, to_array(mask))
    if key.time and axis == 1:
        sliding = getattr(call.layer, "_sliding_window", getattr(call.layer, "sliding_window", None))
        return _Asked(query, key, value, attention_cache(call, query, key, allowed, sliding, causal=causal), None)
    if len(key.row) != 2 or len(query.row) - query.time > 1 or (query.time and len(query.row) == 2 and not key.time):
        raise call.refuse(f"it attends over axis {axis} from rows {list(query.row)} to rows {list(key.row)}")
    if query.time and len(query.row) == 1 and (causal or mask is not None):
        raise call.refuse("it masks what it attends to for each timestep, and that is no timestep")
    if causal:
        allowed = np.tril(np.ones((query.row[0], key.row[0]), bool) if allowed is None else allowed)
    return _Asked(query, key, value, None, allowed)


def _pairs(call: Call, mask: Array) -> Array:
    """Return a constant mask as `(queries, keys)` bool."""
    if mask.ndim < 2 or any(size != 1 for size in mask.shape[:-2]):
        raise call.refuse(
            f"its attention_mask has shape {list(mask.shape)}; expected one for all sequences and heads, "
            "(queries, keys)"
        )
    pairs: Array = mask.reshape(mask.shape[-2:]).astype(bool)
    return pairs


def _answer(call: Call, asked: _Asked, scores: str, values: str, groups: int = 1) -> str:
    """Return the values weighed by their scores."""
    if asked.past is not None and asked.past.span > 1:
        scores = call.op("Add", scores, asked.past.bias(call, asked.counts))
    elif asked.mask is not None:
        scores = call.op("Add", scores, call.constant(np.where(np.tile(asked.mask, (groups, 1)), 0, NEVER)))
    return call.op("MatMul", call.op("Softmax", scores, axis=-1), values)
