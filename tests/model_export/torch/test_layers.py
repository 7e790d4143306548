"""The layers with state: a whole sequence is the same as its timesteps, in torch itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stepwell_export.torch import CachedAttention, CausalConv1d, LinearRecurrentUnit, StepLayer
from tests.model_export.torch.zoo_auto import Leaky
from tests.model_export.torch.zoo_parts import nn, torch

pytestmark = pytest.mark.torch

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "convolution": (lambda: CausalConv1d(4, 6, 3), (2, 4, 12)),
    "dilated": (lambda: CausalConv1d(4, 6, 2, dilation=5, groups=2, bias=False), (2, 4, 12)),
    "attention": (lambda: CachedAttention(8, heads=2, window=5), (2, 12, 8)),
    "recurrence": (lambda: LinearRecurrentUnit(4, 7), (2, 12, 4)),
    "own": (lambda: Leaky(4), (2, 12, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_timesteps_of_a_layer_equal_the_whole_sequence(name: str) -> None:
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(*shape)

    torch.testing.assert_close(layer(x), StepLayer.forward(layer, x), atol=1e-6, rtol=1e-5)


def test_a_causal_convolution_is_one_of_torch_padded_on_the_left() -> None:
    layer, x = CausalConv1d(4, 6, 3, dilation=2), torch.randn(2, 4, 9)
    torchs = nn.Conv1d(4, 6, 3, dilation=2)
    torchs.load_state_dict(layer.conv.state_dict())

    assert torch.equal(layer(x), torchs(nn.functional.pad(x, (4, 0))))


def test_attention_forgets_what_is_older_than_its_window() -> None:
    layer, x = CachedAttention(8, heads=2, window=3).eval(), torch.randn(1, 6, 8)
    other = x.clone()
    other[:, :3] = torch.randn(1, 3, 8)

    torch.testing.assert_close(layer(x)[:, -1], layer(other)[:, -1])
    assert not torch.allclose(layer(x)[:, -2], layer(other)[:, -2])


def test_a_linear_recurrence_stays_bounded() -> None:
    layer = LinearRecurrentUnit(2, 16)

    assert layer(torch.ones(1, 500, 2)).abs().max() < 1e3


def test_the_layers_learn() -> None:
    for build, shape in LAYERS.values():
        layer = build()
        layer(torch.randn(*shape)).square().sum().backward()

        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in layer.parameters())
