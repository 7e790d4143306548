"""Rules of attention layers, over time or inside a timestep: scores, masks, a softmax, and the values it weighs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from stepwell_export.graph.nodes import needed_nodes, uses
from stepwell_export.keras.rule_registry import Call, op_rule, rule, to_array
from stepwell_export.keras.support.broadcast import as_long_as, constant_beside
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array

NEVER = -1e9
"""The score of what may not be looked at: its weight is exactly zero where anything else may be."""

# ---------------------------------------------------------------- many heads


@rule("MultiHeadAttention", "GroupQueryAttention", masks=True)
def multi_head_attention(call: Call) -> list[Value]:
    """Attention with projections; several heads of the query may share one of key and value."""
    layer = call.layer
    given = inspect.signature(layer.call).bind(*call.args, **call.kwargs).arguments
    axis, *more = getattr(layer, "_attention_axes", None) or (1,)
    sliding = getattr(layer, "_sliding_window", getattr(layer, "sliding_window", None))
    if more:
        raise call.refuse(f"it attends over several axes at once ({[axis, *more]}); expected one")
    if axis != 1 and (given.get("use_causal_mask") or sliding):
        raise call.refuse(f"it attends over axis {axis}, and use_causal_mask and sliding_window mask axis 1")
    if call.mask is not None or any(given.get(f"{name}_mask") is not None for name in ("query", "value", "key")):
        raise call.refuse(
            "a mask reaches it, and there a masked timestep looks at the whole sequence",
            "Leave masking out and send only timesteps that count: a stream has no padding.",
        )

    def projected(dense: Any, x: Value) -> Value:
        found: Value = call.walk.visit(dense, f"{call.path}.", x)[0]
        return found

    query, key, value = _operands(call, given)
    q, k = projected(layer._query_dense, query), projected(layer._key_dense, key)
    found, weights = _attended(
        call, q, k, projected(layer._value_dense, value), axis=axis, mask=given.get("attention_mask"), sliding=sliding,
        causal=bool(given.get("use_causal_mask")),
    )  # fmt: skip
    if getattr(layer, "_use_gate", getattr(layer, "use_gate", False)):
        found = found.like(call.op("Mul", found, projected(layer._gate_dense, query)))
    y = projected(layer._output_dense, found)
    return [y, _given_out(call, weights)] if given.get("return_attention_scores") else [y]


@op_rule("DotProductAttention")
def dot_product_attention(call: Call) -> Value:
    """`ops.dot_product_attention`: several heads, without projections."""
    given = inspect.signature(call.layer.call).bind(*call.args, **call.kwargs).arguments
    if given.get("bias") is not None or getattr(call.layer, "attn_logits_soft_cap", None):
        raise call.refuse("it has a bias or a soft cap", "Use MultiHeadAttention.")
    q, k, v = _operands(call, given)
    causal, scale = call.layer.is_causal, given.get("scale")
    return _attended(call, q, k, v, axis=1, scale=scale, mask=given.get("mask"), causal=causal)[0]


def _operands(call: Call, given: dict[str, Any]) -> list[Value]:
    """Return queries, keys and values, all with the same number of axes."""
    key = given["value"] if given.get("key") is None else given["key"]
    named = (given["query"], key, given["value"])
    found = [call.as_float(x if isinstance(x, Value) else _constant(call, to_array(x))) for x in named]
    if len({x.rank for x in found}) > 1 or found[0].rank < 3:
        raise call.refuse(f"it attends from rows {list(found[0].row)} to rows {list(found[1].row)}")
    return found


def _constant(call: Call, array: Array) -> Value:
    """Return what is the same for every row of the batch."""
    if array.ndim < 3 or array.shape[0] != 1:
        raise call.refuse(f"it takes a constant of shape {list(array.shape)}; expected one for all rows of the batch")
    return Value(call.constant(array, "float32"), array.shape[1:])


def _attended(
    call: Call,
    q: Value,
    k: Value,
    v: Value,
    *,
    axis: int,
    scale: float | None = None,
    mask: Any = None,
    sliding: int | None = None,
    causal: bool = False,
) -> tuple[Value, Value]:
    """Return what each head of the queries finds, row `(*places, heads, width)`, and the weights of it.

    Args:
        call: The layer or operation.
        q: Queries, row `(*places, heads, width)`.
        k: Keys; several heads of the queries may share one of theirs.
        v: Values, with as many heads as the keys.
        axis: That of the places which attend to each other.
        scale: Of the scores; None: one over the root of the width.
        mask: As `_masked` takes it, like the last two.
        sliding: As `_masked` takes it.
        causal: As `_masked` takes it.
    """
    (heads, width), count = q.row[-2:], k.row[-2]
    if (shared := heads != count) and heads and count:
        q = call.reshaped(q, (*q.row[:-2], count, heads // count, width))
        k, v = (call.reshaped(x, (*x.row[:-2], count, 1, x.row[-1])) for x in (k, v))
    scale = 1 / math.sqrt(width or 1) if scale is None else scale
    queries = _by_head(call, q, axis, "queries")
    queries = queries.like(call.op("Mul", queries, call.constant(scale)))
    keys = _by_head(call, k, axis, "keys", turned=True)
    scores = queries.like(call.op("MatMul", queries, keys), row=(*queries.row[:-1], keys.row[-1]))
    scores = _masked(call, q, scores, mask, sliding, causal=causal)
    weights = scores.like(call.op("Softmax", scores, axis=-1))
    found = _weighed(call, weights, _by_head(call, v, axis, "values"))
    places = found.rank - 2
    order = [*range(axis), places, *range(axis, places), found.rank - 1]
    found = found.like(call.op("Transpose", found, perm=order), row=(*q.row[:-1], v.row[-1]))
    if shared:
        found = call.reshaped(found, (*found.row[:-3], heads, found.row[-1]))
        weights = call.reshaped(weights, (heads, *weights.row[-2:]))
    return found, weights


def _by_head(call: Call, x: Value, axis: int, name: str, *, turned: bool = False) -> Value:
    """Return `(*others, places, width)` of a row that has its places at an axis, or `(*others, width, places)`."""
    last = x.rank - 1
    order = [*(place for place in range(last) if place != axis), *((last, axis) if turned else (axis, last))]
    return x.like(_named(call, name, "Transpose", x, perm=order), row=tuple(x.row[place - 1] for place in order[1:]))


def _named(call: Call, name: str, kind: str, *inputs: Value | str, **attributes: Any) -> str:
    """Emit a node whose output has a name of its own: the state that keeps its past timesteps is named after it."""
    made = call.graph.unique(f"{call.path}/{name}")
    names = [x.name if isinstance(x, Value) else x for x in inputs]
    call.graph.add(kind, names, [made], at=call.path, **attributes)
    return made


def _given_out(call: Call, weights: Value) -> Value:
    """Return the weights as an answer of the layer."""
    if None in weights.row[1:]:
        raise call.refuse("it also returns its scores, which have a column for each timestep", "Leave the scores out.")
    return weights


def _weighed(call: Call, weights: Value, v: Value) -> Value:
    return weights.like(call.op("MatMul", weights, v), row=(*weights.row[:-1], v.row[-1]))


# ---------------------------------------------------------------- one head, without projections


@rule("Attention", "AdditiveAttention", masks=True)
def attention(call: Call) -> list[Value]:
    """Attention on the values as they are, by product or by a sum."""
    query, value, key = call.values[0], call.values[1], call.values[-1]
    counts = _counts(call, query, value)
    q, k, v = _operands(call, {"query": query, "key": key, "value": value})
    v = v.like(_named(call, "values", "Identity", v))
    k = v if key.name == value.name else k  # one tensor, so that its past is kept once
    scores = q.like(_compared(call, q, k), row=(*q.row[:-1], k.row[-2]))
    scores = _masked(call, query, scores, None, None, causal=bool(call.kwargs.get("use_causal_mask")), counts=counts)
    weights = scores.like(call.op("Softmax", scores, axis=-1))
    found = _weighed(call, weights, v)
    if query.mask is not None:
        shown = call.op("Unsqueeze", query.mask, call.graph.ints([2]))
        found = found.like(call.op("Where", shown, found, call.constant(0.0)), mask=query.mask)
    return [found, _given_out(call, weights)] if call.kwargs.get("return_attention_scores") else [found]


def _counts(call: Call, query: Value, value: Value) -> str | None:
    """Return which timesteps may be looked at, from the masks that the inputs carry, shape `(batch, timesteps)`."""
    if (call.mask is not None and query.mask is value.mask is None) or (
        query.is_sequence and value.mask not in {None, query.mask}
    ):
        raise call.refuse(
            "its values are masked and its queries are not, so a query that finds no value looks at the whole sequence",
            "Mask both or neither.",
        )
    if query.rank > 3 and (query.mask or value.mask):
        raise call.refuse("it attends inside a timestep and has a mask of timesteps", "Mask outside.")
    return value.mask


def _compared(call: Call, q: Value, k: Value) -> str:
    layer = call.layer
    scale = None if layer.scale is None else call.constant(layer.scale)
    if isinstance(layer, keras.layers.AdditiveAttention):
        sums = call.op("Tanh", _sums(call, q, k))
        return _summed(call, call.op("Mul", sums, scale) if scale else sums)
    if layer.score_mode == "concat":
        sums = _sums(call, q, k)
        summed = _summed(call, call.op("Tanh", call.op("Mul", sums, scale) if scale else sums))
        return call.op("Mul", summed, call.constant(layer.concat_score_weight))
    scores = call.op("MatMul", q, _by_head(call, k, k.rank - 2, "keys", turned=True))
    return call.op("Mul", scores, scale) if scale else scores


def _sums(call: Call, q: Value, k: Value) -> str:
    ints = call.graph.ints
    keys = _named(call, "keys", "Unsqueeze", k, ints([k.rank - 2]))
    return call.op("Add", call.op("Unsqueeze", q, ints([q.rank - 1])), keys)


def _summed(call: Call, x: str) -> str:
    return call.op("ReduceSum", x, call.graph.ints([-1]), keepdims=0)


# ---------------------------------------------------------------- masks


def _masked(
    call: Call, query: Value, scores: Value, mask: Any, sliding: int | None, *, causal: bool, counts: str | None = None
) -> Value:
    """Return scores without those that do not count.

    Args:
        call: The layer or operation.
        query: What looks.
        scores: Of queries and keys, which are in the last two axes.
        mask: Which of them count, as Keras takes it; None: all.
        sliding: Only keys that are less than so many places away; None: all.
        causal: Only keys that are not behind the query.
        counts: Which keys count, shape `(batch, keys)` bool; None: all.
    """
    if call.graph.length is not None and scores.row[-1] is None:  # all timesteps so far are kept
        call.graph.bounded |= causal and not sliding if scores.row[-2] is None else _is_of_sequence(call, query)
    shown = [] if mask is None else [_mask_beside(call, scores, mask)]
    if causal:
        shown.append(call.op("GreaterOrEqual", _lag(call, scores), call.constant(0, "int64")))
    if sliding:
        shown.append(call.op("Less", call.op("Abs", _lag(call, scores)), call.constant(sliding, "int64")))
    if counts is not None:
        shown.append(_named(call, "counts", "Unsqueeze", counts, call.graph.ints([1])))
    if not shown:
        return scores
    both = shown[0]
    for one in shown[1:]:
        both = call.op("And", both, one)
    return scores.like(call.op("Add", scores, call.op("Where", both, call.constant(0.0), call.constant(NEVER))))


def _is_of_sequence(call: Call, value: Value) -> bool:
    """Whether a value depends on an input that has a time axis."""
    names = {value.name}.union(*map(uses, needed_nodes(call.graph.nodes, [value.name])))
    return any(facts.time and name in names for name, facts in call.graph.facts.items())


def _lag(call: Call, scores: Value) -> str:
    """Return how many places the query is behind the key, shape `(queries, keys)` int64."""
    queries, keys = (_places(call, scores, axis) for axis in (scores.rank - 2, scores.rank - 1))
    return call.op("Sub", call.op("Unsqueeze", queries, call.graph.ints([1])), keys)


def _places(call: Call, value: Value, axis: int) -> str:
    size = value.row[axis - 1]
    if size is not None:
        return call.constant(np.arange(size))
    steps = call.op("Squeeze", call.op("Shape", value, start=axis, end=axis + 1))
    return call.op("Range", call.constant(0, "int64"), steps, call.constant(1, "int64"))


def _mask_beside(call: Call, scores: Value, mask: Any) -> str:
    """Return a mask that broadcasts against the scores, bool; its axis of heads may be left out, as Keras has it."""
    if isinstance(mask, Value):
        truth, missing = call.as_truth(mask), scores.rank - mask.rank
        if mask.rank < 3 or missing < 0 or (missing and mask.rank > 3 and mask.row[0] != 1):
            raise call.refuse(f"it has an attention_mask of row shape {list(mask.row)}; expected (queries, keys)")
        place = mask.rank - 2
        spread = call.unsqueezed(truth, range(place, place + missing)) if missing else truth
        return as_long_as(call, spread, scores).name
    array = to_array(mask).astype(bool)
    if (by_lag := _by_lag(array)) is not None and call.graph.length is None and scores.row[-2:] == (None, None):
        farthest = len(by_lag) // 2
        lag = call.op("Clip", _lag(call, scores), call.constant(-farthest, "int64"), call.constant(farthest, "int64"))
        entry = call.op("Add", lag, call.constant(farthest, "int64"))
        return call.op("Gather", call.constant(by_lag, "bool"), entry)
    if 2 < array.ndim < scores.rank:
        array = array.reshape(*_with_heads(call, array, scores), *array.shape[-2:])
    return constant_beside(call, scores, array, "bool").name


def _with_heads(call: Call, array: Array, scores: Value) -> Sequence[int]:
    """Return the axes of a constant mask in front of queries and keys."""
    front = array.shape[:-2]
    heads = tuple(size or 0 for size in scores.row[:-2])
    if len(front) == len(heads) == 2 and front[1] == math.prod(heads):  # heads that share keys are in two axes
        return (front[0], *heads)
    if len(front) > 1 and front[-1] != 1:
        raise call.refuse(f"its attention_mask has shape {list(array.shape)}; expected (queries, keys)")
    return (*front, *(1 for _ in range(scores.rank - array.ndim)))


def _by_lag(mask: Array) -> Array | None:
    """Return what a square mask has for each lag, the farthest one ahead first; None: it depends on more than that."""
    rows, columns = mask.shape[-2:] if mask.ndim > 1 else (0, 1)
    if rows != columns or mask.size != rows * columns:
        return None
    table = mask.reshape(rows, rows)
    by_lag = np.concatenate([table[0, :0:-1], table[:, 0]])
    lag = np.subtract.outer(np.arange(rows), np.arange(rows))
    return by_lag if np.array_equal(by_lag[lag + rows - 1], table) else None
