"""Layers with a state that torch has not: causal convolution, attention with a cache, linear recurrence.

Each runs over whole sequences in training, and every module that has one of them, or a `StepLayer` of yours, can be
exported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class StepLayer(nn.Module):
    """A layer that can take one timestep: derive from it, and every module that has your layer can be exported.

    `forward` runs a whole sequence timestep by timestep, from the initial states; override it where there is a
    faster way to the same numbers, which can then be stepped itself: it is what an export traces.

    Attributes:
        time_axis: Where `forward` has its time axis, in what it takes and gives.
    """

    time_axis = 1

    def initial_states(self) -> dict[str, Tensor]:
        """Return the state of a stream before its first timestep, by name; shape `(1, *row)` each."""
        raise NotImplementedError

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Consume one timestep.

        Args:
            x: Shape `(batch, *row)`.
            states: Shape `(batch, *row)` each, in the order of `initial_states`.

        Returns:
            The answer, then every next state.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Run whole sequences."""
        rows = x.shape[0]
        states = [state.expand(rows, *state.shape[1:]) for state in self.initial_states().values()]
        answers = []
        for timestep in x.unbind(self.time_axis):
            answer, *states = self.step(timestep, *states)
            answers.append(answer)
        return torch.stack(answers, dim=self.time_axis)


class CausalConv1d(StepLayer):
    """A convolution over time that sees the past alone: `nn.Conv1d` padded on the left.

    Takes and gives `(batch, channels, timesteps)`. Carries the last `(kernel_size - 1) * dilation` timesteps.
    """

    time_axis = 2

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **more: Any) -> None:
        """Make the layer.

        Args:
            in_channels: Channels of a timestep.
            out_channels: Channels of an answer.
            kernel_size: Timesteps that an answer is made of.
            more: As `nn.Conv1d` takes it: `dilation`, `groups`, `bias`.
        """
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, **more)
        self.past = (self.conv.kernel_size[0] - 1) * self.conv.dilation[0]

    def initial_states(self) -> dict[str, Tensor]:
        """Return zeros: the padding."""
        return {"past": self.conv.weight.new_zeros(1, self.conv.in_channels, self.past)} if self.past else {}

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Consume one timestep, shape `(batch, channels)`."""
        seen = torch.cat([*states, x[..., None]], dim=2)
        return (self.conv(seen)[..., 0], *(seen[..., 1:] for _ in states))

    def forward(self, x: Tensor) -> Tensor:
        """Run whole sequences, `(batch, channels, timesteps)`."""
        found: Tensor = self.conv(nn.functional.pad(x, (self.past, 0)))
        return found


class CachedAttention(StepLayer):
    """Multi-head self-attention to the last `window` timesteps, the new one included.

    Takes and gives `(batch, timesteps, features)`. Carries their keys and values, and which of them are there.
    """

    def __init__(self, features: int, heads: int, window: int) -> None:
        """Make the layer.

        Args:
            features: Of a timestep and of an answer; a multiple of `heads`.
            heads: Attention heads.
            window: Timesteps that are attended to.
        """
        super().__init__()
        self.heads, self.window = heads, window
        self.project = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)

    def initial_states(self) -> dict[str, Tensor]:
        """Return an empty cache."""
        weight = self.out.weight
        keys = weight.new_zeros(1, self.heads, self.window, weight.shape[0] // self.heads)
        return {"keys": keys, "values": keys.clone(), "filled": weight.new_zeros(1, self.window)}

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Consume one timestep, shape `(batch, features)`."""
        q, k, v = (part.unflatten(-1, (self.heads, 1, -1)) for part in self.project(x).chunk(3, dim=-1))
        keys, values = (torch.cat([old[:, :, 1:], new], dim=2) for old, new in zip(states[:2], (k, v), strict=True))
        filled = torch.cat([states[2][:, 1:], torch.ones_like(states[2][:, :1])], dim=1)
        answer = self._attend(q, keys, values, filled[:, None, None] > 0)
        return answer[:, 0], keys, values, filled

    def forward(self, x: Tensor) -> Tensor:
        """Run whole sequences, `(batch, timesteps, features)`."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1))
        at = torch.arange(x.shape[1], device=x.device)
        age = at[:, None] - at[None]
        return self._attend(q, k, v, (age >= 0) & (age < self.window))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Attend; `q`, `k`, `v` have shape `(batch, heads, timesteps, features of a head)`."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1)
        found: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return found


class LinearRecurrentUnit(StepLayer):
    """A diagonal state space: `s' = a s + B x`, `y = Re(C s') + D x`, with a complex `a` inside the unit circle.

    Takes and gives `(batch, timesteps, features)`. Carries the real and the imaginary part of `s`.

    Source: Orvieto et al. 2023, "Resurrecting Recurrent Neural Networks for Long Sequences".
    """

    def __init__(self, features: int, width: int) -> None:
        """Make the layer.

        Args:
            features: Of a timestep and of an answer.
            width: Complex numbers of state.
        """
        super().__init__()
        self.decay = nn.Parameter(torch.rand(width).add(0.1).log())
        self.angle = nn.Parameter(torch.rand(width) * math.pi / 10)
        self.into_re, self.into_im = (nn.Linear(features, width, bias=False) for _ in range(2))
        self.from_re, self.from_im = (nn.Linear(width, features, bias=False) for _ in range(2))
        self.through = nn.Parameter(torch.ones(features))

    def initial_states(self) -> dict[str, Tensor]:
        """Return zeros."""
        zeros = self.decay.new_zeros(1, len(self.decay))
        return {"re": zeros, "im": zeros.clone()}

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Consume one timestep, shape `(batch, features)`."""
        re, im = states
        size = torch.exp(-torch.exp(self.decay))
        a_re, a_im = size * torch.cos(self.angle), size * torch.sin(self.angle)
        gain = torch.sqrt(1 - size**2)
        re, im = (
            a_re * re - a_im * im + gain * self.into_re(x),
            a_re * im + a_im * re + gain * self.into_im(x),
        )
        return self.from_re(re) - self.from_im(im) + self.through * x, re, im
