"""How do I serve a PyTorch module that takes its state and returns it, a policy or a cell of my own?

`StepSpec(module, inputs=one timestep, states=initial states)`: the module returns its outputs, then the next states.
Any operation is supported, since nothing has to be analysed.

Here it is a filter that follows a noisy value: the weight of a new measurement is learned, and depends on the error of
the last ones. Its initial state is learned too, not zero.
"""

from __future__ import annotations

import numpy as np
import torch
from live import compare, live
from torch import nn

from stepwell import StepSpec

TIMESTEPS = 40


class Filter(nn.Module):
    """From one measurement (batch, 1) to the true value, with the current estimate and its uncertainty as states."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid())
        self.fade = nn.Parameter(torch.zeros(1))
        self.guess = nn.Parameter(torch.zeros(1, 1))

    def forward(self, measured: torch.Tensor, belief: torch.Tensor, doubt: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Process one measurement; return the value and the next states."""
        off = measured - belief
        fade = torch.sigmoid(self.fade)
        doubt = fade * doubt + (1 - fade) * off.abs()
        belief = belief + self.gain(torch.cat([off.abs(), doubt], dim=-1)) * off
        return belief, belief, doubt


def follow(module: Filter, measured: torch.Tensor) -> torch.Tensor:
    """Run whole sequences (batch, timestep, 1) in PyTorch."""
    belief = module.guess.expand(len(measured), 1)
    doubt, answers = torch.zeros(len(measured), 1), []
    for now in measured.unbind(1):
        answer, belief, doubt = module(now, belief, doubt)
        answers.append(answer)
    return torch.stack(answers, dim=1)


def draw(series: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy measurements (series, timestep, 1) of values that sometimes jump, and the values."""
    jumps = rng.standard_normal((series, TIMESTEPS)) * (rng.random((series, TIMESTEPS)) < 0.1)
    values = 2 + np.cumsum(jumps, axis=1)
    measured = values + 0.3 * rng.standard_normal(values.shape)
    return torch.from_numpy(measured[..., None]).float(), torch.from_numpy(values[..., None]).float()


def main() -> None:
    torch.manual_seed(9)
    torch.set_num_threads(1)
    module, rng = Filter(), np.random.default_rng(9)
    optimizer = torch.optim.Adam(module.parameters(), 2e-2)
    for _ in range(60):
        measured, values = draw(64, rng)
        loss = nn.functional.mse_loss(follow(module, measured), values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    measured, values = draw(2, rng)
    states = {"belief": module.guess.detach(), "doubt": torch.zeros(1, 1)}
    spec = StepSpec(module, inputs={"measured": measured[:, 0]}, states=states, output_names=["value"])
    served = np.zeros(values.shape, np.float32)
    with live(spec, "filter") as http:
        for series, row in enumerate(measured.tolist()):
            body = {"inputs": {"measured": row}, "seq": 1}
            answer = http.post(f"/v1/models/filter/streams/series-{series}/steps", json=body).json()
            served[series] = answer["outputs"]["value"]
            print(f"series {series} ends at {values[series, -1, 0]:.2f}; the filter gives {served[series, -1, 0]:.2f}")
    error = {"measured": measured, "filtered": torch.from_numpy(served)}
    print("mean error:", {name: round(float((found - values).abs().mean()), 3) for name, found in error.items()})
    with torch.no_grad():
        compare(served, follow(module, measured).numpy(), "PyTorch")


if __name__ == "__main__":
    main()
