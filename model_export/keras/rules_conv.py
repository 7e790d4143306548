"""Rules of convolution and pooling: causal over time as a ring of past timesteps, anything inside one timestep."""

from __future__ import annotations

from typing import Any

from model_export.errors import RefusedModelError
from model_export.keras.activations import activate
from model_export.keras.emit import Value
from model_export.keras.registry import Call, rule, to_array


@rule("Conv1D")
def conv1d(call: Call) -> Value:
    """Over time: causal, with the timesteps it looks back on as a state. Inside a timestep: any."""
    layer, x = call.layer, call.as_float(call.value)
    if not x.time:
        return _convolve(call, x)
    size, dilation = layer.kernel_size[0], layer.dilation_rate[0]
    if layer.strides[0] != 1:
        raise call.refuse(
            f"strides={layer.strides[0]} skips timesteps", "A stream has one answer for each timestep: use strides=1."
        )
    if size > 1 and layer.padding != "causal":
        raise call.refuse(
            f"padding={layer.padding!r} over the time axis looks at timesteps that have not come yet "
            f"or shortens the sequence (kernel_size {size})",
            "Use padding='causal'.",
        )
    if len(x.row) != 1 or layer.data_format == "channels_first":
        raise call.refuse(f"its input has row shape {list(x.row)}; expected one axis of channels, last")
    taps = _past(call, x, size, dilation)
    kernel = to_array(layer.kernel)
    bias = [call.constant(layer.bias)] if layer.use_bias else []
    if layer.groups == 1:
        flat = taps if size == 1 else call.graph.reshape(taps, [size * x.row[0]], at=call.path)
        y = call.op("Gemm", flat, call.constant(kernel.reshape(-1, layer.filters)), *bias)
    else:
        window = call.op("Transpose", call.graph.reshape(taps, [size, x.row[0]], at=call.path), perm=[0, 2, 1])
        y = call.op("Conv", window, call.constant(kernel.transpose(2, 1, 0)), *bias, group=layer.groups)
        y = call.op("Squeeze", y, call.graph.ints([2]))
    return activate(call, layer.activation, x.like(y, row=(layer.filters,)))


def _past(call: Call, x: Value, size: int, dilation: int) -> str:
    """Return the timesteps that the kernel sees, shape `(batch, size, channels)`; remember the ones to come back."""
    back = (size - 1) * dilation
    if back == 0:
        return x.name
    spec = call.graph.state(f"{call.path}.past", (back, x.row[0]))
    window = call.op("Concat", spec.input, call.op("Unsqueeze", x.name, call.graph.ints([1])), axis=1)
    ints = call.graph.ints
    call.graph.next_state(spec, call.op("Slice", window, ints([1]), ints([back + 1]), ints([1])))
    return window if dilation == 1 else call.op("Gather", window, ints(range(0, back + 1, dilation)), axis=1)


@rule("Conv2D", "Conv3D")
def conv(call: Call) -> Value:
    """A convolution inside one timestep."""
    x = call.as_float(call.value)
    if x.time:
        raise call.refuse(
            "it convolves over the time axis",
            f"Put it into TimeDistributed({type(call.layer).__name__}(...)) to see each timestep alone.",
        )
    return _convolve(call, x)


@rule(
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
)  # fmt: skip
def pooling(call: Call) -> Value:
    """Pooling inside one timestep."""
    layer, x = call.layer, call.as_float(call.value)
    if x.time:
        raise _pools_over_time(call)
    kind = "MaxPool" if "Max" in type(layer).__name__ else "AveragePool"
    attributes = {"kernel_shape": list(layer.pool_size), "strides": list(layer.strides), **_padding(layer)}
    return _channels_first(call, x, lambda name: call.op(kind, name, **attributes))


@rule(
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D",
)  # fmt: skip
def global_pooling(call: Call) -> Value:
    """The mean or maximum over all positions inside one timestep."""
    layer, x = call.layer, call.as_float(call.value)
    if x.time:
        raise _pools_over_time(call)
    if layer.data_format == "channels_first":
        raise call.refuse("data_format='channels_first' has no rule; expected 'channels_last'")
    kind = "ReduceMax" if "Max" in type(layer).__name__ else "ReduceMean"
    axes = call.graph.ints(range(1, len(x.row)))
    if layer.keepdims:
        return x.like(call.op(kind, x.name, axes, keepdims=1), row=(*(1 for _ in x.row[:-1]), x.row[-1]))
    return x.like(call.op(kind, x.name, axes, keepdims=0), row=x.row[-1:])


def _pools_over_time(call: Call) -> RefusedModelError:
    return call.refuse(
        "it pools over the time axis",
        "Use a recurrent layer with return_sequences=False: its answer sums up the timesteps so far.",
    )


def _convolve(call: Call, x: Value) -> Value:
    layer = call.layer
    kernel = to_array(layer.kernel)
    spatial = kernel.ndim - 2
    inputs = [call.constant(kernel.transpose(spatial + 1, spatial, *range(spatial)))]
    if layer.use_bias:
        inputs.append(call.constant(layer.bias))
    attributes = {
        "strides": list(layer.strides), "dilations": list(layer.dilation_rate), "group": layer.groups, **_padding(layer)
    }  # fmt: skip
    y = _channels_first(call, x, lambda name: call.op("Conv", name, *inputs, **attributes))
    return activate(call, layer.activation, y)


def _padding(layer: Any) -> dict[str, Any]:
    if layer.padding == "causal":
        return {"pads": [(layer.kernel_size[0] - 1) * layer.dilation_rate[0], 0]}
    return {"auto_pad": {"valid": "VALID", "same": "SAME_UPPER"}[layer.padding]}


def _channels_first(call: Call, x: Value, run: Any) -> Value:
    """Run an operator that wants channels in front of the positions; Keras has them last."""
    if call.layer.data_format == "channels_first":
        raise call.refuse("data_format='channels_first' has no rule; expected 'channels_last'")
    axes = len(x.row)
    name = run(call.op("Transpose", x.name, perm=[0, axes, *range(1, axes)]))
    row = call.layer.compute_output_shape((None, *x.row))[1:]
    return x.like(call.op("Transpose", name, perm=[0, *range(2, axes + 1), 1]), row=tuple(row))
