"""How do I serve a temporal convolutional network from PyTorch, without sending the last hundred timesteps each time?

Like any module over whole sequences: the past inputs of each convolution become its state. Padding on the left with
`F.pad` or a padding layer, and padding on both sides with the right side cut off, are both supported.

The network has the residual blocks of Bai et al. 2018 and a receptive field of 31 timesteps; it learns an echo of the
input 10 timesteps ago. Served, a request has one timestep, and the state of a stream is a few hundred numbers.
"""

from __future__ import annotations

import torch
from live import compare, live
from torch import nn

from stepwell import StepSpec

DELAY, TIMESTEPS = 10, 60


class Block(nn.Module):
    """Two causal convolutions and a shortcut, over (batch, channels, timestep)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.one = nn.Conv1d(channels, channels, 3, padding=self.cut, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.two = nn.Conv1d(channels, channels, 3, dilation=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block; each timestep depends on itself and earlier ones only."""
        h = torch.relu(self.norm(self.one(x)[..., : -self.cut]))
        return torch.relu(x + self.two(nn.functional.pad(h, (2, 0))))


def build() -> nn.Module:
    """Return a network from (batch, 1, timestep) to (batch, 1, timestep)."""
    blocks = [Block(12, dilation) for dilation in (1, 2, 4)]
    return nn.Sequential(nn.Conv1d(1, 12, 1), *blocks, nn.Conv1d(12, 1, 1))


def main() -> None:
    torch.manual_seed(10)
    torch.set_num_threads(1)
    module = build()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        said = torch.rand(32, 1, TIMESTEPS)
        loss = nn.functional.mse_loss(module(said)[..., DELAY:], said[..., :-DELAY])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    said = torch.rand(1, 1, TIMESTEPS)
    spec = StepSpec(module, inputs={"said": said}, time_axis=2, output_names=["echo"])
    with live(spec, "echo") as http:
        model = http.get("/v1/models/echo").json()
        print(f"{model['bytes_per_stream']:,} bytes of state for each stream")
        body = {"inputs": {"said": said[0].T.tolist()}}
        answer = http.post("/v1/models/echo/streams/cave/steps", json=body).json()
        for then in said[0, 0, -DELAY:][:3].tolist():
            now = http.post("/v1/models/echo/streams/cave/step", json={"inputs": {"said": [0.5]}}).json()
            echo = now["outputs"]["echo"][0]
            print(f"said {then:.2f} {DELAY} timesteps ago; the echo at step {now['step']} is {echo:.2f}")
    with torch.no_grad():
        compare(answer["outputs"]["echo"], module.eval()(said)[0].T.numpy(), "PyTorch")


if __name__ == "__main__":
    main()
