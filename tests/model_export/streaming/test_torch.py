"""What PyTorch's exporters write becomes a step graph: modules as people write them, both exporters."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.streaming import convert

torch = pytest.importorskip("torch", reason="PyTorch is not installed (STEPWELL_EXTRAS=torch)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (STEPWELL_EXTRAS=torch)")
from tests.model_export.torch.zoo_parts import of  # noqa: E402

pytestmark = pytest.mark.torch

nn, F = torch.nn, torch.nn.functional


def tcn(m: Any, x: Any) -> Any:
    y = x.transpose(1, 2)
    y = F.gelu(m.a(y)[:, :, :-2].contiguous())
    y = y + F.gelu(m.b(y)[:, :, :-4].contiguous())
    return m.out(y.transpose(1, 2))


def spectrum(m: Any, x: Any) -> Any:
    y = F.relu(m.conv(F.pad(x.unsqueeze(1), (0, 0, 2, 0))))
    rows, depth, steps, width = y.shape
    return m.norm(m.gru(y.permute(0, 2, 1, 3).reshape(rows, steps, depth * width))[0])


def window(m: Any, x: Any) -> Any:
    rows, steps, _ = x.shape
    age = torch.arange(steps)[:, None] - torch.arange(steps)[None, :]
    q, k, v = m.qkv(x).reshape(rows, steps, 3, 2, 2).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age < 6))
    return m.out(y.transpose(1, 2).reshape(rows, steps, 4))


def learned(m: Any, x: Any) -> Any:
    return m.gru(x, m.start.expand(-1, x.shape[0], -1).contiguous())[0]


MODULES: dict[str, Callable[[], Any]] = {
    "lstm": lambda: of(lambda m, x: m.out(m.rnn(x)[0]), rnn=nn.LSTM(4, 6, 2, batch_first=True), out=nn.Linear(6, 2)),
    "last_state": lambda: of(
        lambda m, x: m.out(m.rnn(x)[1][0][-1]), rnn=nn.LSTM(4, 6, 2, batch_first=True), out=nn.Linear(6, 2)
    ),
    "learned": lambda: of(learned, gru=nn.GRU(4, 6, batch_first=True), start=nn.Parameter(torch.randn(1, 1, 6))),
    "tcn": lambda: of(
        tcn, a=nn.Conv1d(4, 5, 3, padding=2), b=nn.Conv1d(5, 5, 3, padding=4, dilation=2), out=nn.Linear(5, 2)
    ),
    "spectrum": lambda: of(
        spectrum,
        conv=nn.Conv2d(1, 3, (3, 3), stride=(1, 2)),
        gru=nn.GRU(3, 7, batch_first=True),
        norm=nn.LayerNorm(7),
    ),
    "window": lambda: of(window, qkv=nn.Linear(4, 12), out=nn.Linear(4, 4)),
}


def exported(module: Any, *, newer: bool) -> onnx.ModelProto:
    """Export a module over `(batch, time, 4)` with one of PyTorch's two exporters."""
    x = torch.randn(2, 7, 4)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if newer:
            free = (({0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)},),)  # of all inputs
            made: onnx.ModelProto = torch.onnx.export(
                module.eval(), (x,), input_names=["x"], dynamic_shapes=free, dynamo=True, verbose=False
            ).model_proto
            return made
        torch.onnx.export(
            module.eval(), (x,), buffer, dynamo=False, input_names=["x"], output_names=["y"], opset_version=17,
            dynamic_axes={"x": {0: "batch", 1: "time"}},
        )  # fmt: skip
    return onnx.load_model_from_string(buffer.getvalue())


@pytest.mark.parametrize("name", MODULES)
def test_what_the_older_exporter_writes_is_stepped(name: str) -> None:
    torch.manual_seed(0)
    _, report = verify_model(convert(exported(MODULES[name](), newer=False), name=name), long_steps=100)

    assert report.parity.max_abs <= 1e-5


@pytest.mark.parametrize("name", ["window"])
def test_what_the_newer_exporter_writes_is_stepped(name: str) -> None:
    torch.manual_seed(0)
    _, report = verify_model(convert(exported(MODULES[name](), newer=True), name=name), long_steps=100)

    assert report.parity.max_abs <= 1e-5
