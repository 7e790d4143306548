"""How do I serve an nn.LSTM that I trained in PyTorch over whole sequences?

Unchanged: `StepSpec(module, inputs=example, time_axis=1)`. The exporter extracts the state of every recurrent layer,
and compares the step graph with the module on whole sequences before it writes the file.

The module gets the sound of a machine and predicts at every timestep how likely it is that the machine has slowed down.
It was trained on sequences of 80 timesteps; served, each request has one, and a stream may continue indefinitely.
"""

from __future__ import annotations

import numpy as np
import torch
from live import compare, live
from torch import nn

from stepwell import StepSpec

TIMESTEPS = 80


class Listener(nn.Module):
    """From sound (batch, timestep, 1) to the probability that the machine is slow, (batch, timestep, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.lstm = nn.LSTM(1, 24, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(24, 1)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Return a probability for every timestep, based on the timesteps up to it."""
        return torch.sigmoid(self.head(self.norm(self.lstm(sound)[0])))


def record(machines: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sounds (machine, timestep, 1), and whether each machine has slowed down at each timestep."""
    at = rng.integers(TIMESTEPS // 4, 3 * TIMESTEPS // 4, (machines, 1))
    slow = np.arange(TIMESTEPS) >= at
    phase = np.cumsum(np.where(slow, 0.5, 0.9), axis=1) + rng.uniform(0, 2 * np.pi, (machines, 1))
    sound = np.sin(phase) + 0.1 * rng.standard_normal((machines, TIMESTEPS))
    return torch.from_numpy(sound[..., None]).float(), torch.from_numpy(slow[..., None]).float()


def main() -> None:
    torch.manual_seed(8)
    torch.set_num_threads(1)
    module, rng = Listener(), np.random.default_rng(8)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(80):
        sound, slow = record(64, rng)
        loss = nn.functional.binary_cross_entropy(module(sound), slow)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    sound, slow = record(3, rng)
    served = np.zeros(slow.shape, np.float32)
    with live(StepSpec(module, inputs={"sound": sound}, time_axis=1, output_names=["slow"]), "listener") as http:
        for machine, row in enumerate(sound.tolist()):
            for timestep, value in enumerate(row):
                path = f"/v1/models/listener/streams/machine-{machine}/step"
                answer = http.post(path, json={"inputs": {"sound": value}, "seq": timestep + 1}).json()
                served[machine, timestep] = answer["outputs"]["slow"]
            began = [int(TIMESTEPS - (now > 0.5).sum()) for now in (slow[machine], served[machine])]
            print(f"machine {machine} is slow from timestep {began[0]} on; heard from {began[1]} on")
    with torch.no_grad():
        compare(served, module.eval()(sound).numpy(), "PyTorch")


if __name__ == "__main__":
    main()
