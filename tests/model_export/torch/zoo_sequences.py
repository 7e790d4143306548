"""Zoo: modules with memory in what they do over time: convolutions, sums, differences."""

from __future__ import annotations

from typing import Any

from stepwell_export import StepSpec
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch, whole

F = torch.nn.functional


def padded() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = torch.relu(m.norm(m.first(F.pad(x, (2, 0)))))
        return h + m.second(F.pad(h, (6, 0)))

    parts = {"first": nn.Conv1d(4, 6, 3), "norm": nn.BatchNorm1d(6), "second": nn.Conv1d(6, 6, 4, dilation=2)}
    return whole(of(run, **parts), 2, 4, 9, time_axis=2)


def pad_layers() -> StepSpec:
    return whole(
        nn.Sequential(
            nn.ConstantPad1d((3, 0), 0.5), nn.Conv1d(4, 5, 4), nn.GELU(), nn.ZeroPad1d((1, 0)), nn.Conv1d(5, 3, 2)
        ),
        2, 4, 9, time_axis=2,
    )  # fmt: skip


def chomped() -> StepSpec:
    """The residual block of Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and ..."."""

    def run(m: Any, x: Any) -> Any:
        h = torch.relu(m.first(x)[..., :-2])
        h = torch.relu(m.second(h)[..., :-4].contiguous())
        return m.head(torch.relu(h + m.match(x)).transpose(1, 2))

    parts = {
        "first": nn.Conv1d(4, 6, 3, padding=2),
        "second": nn.Conv1d(6, 6, 3, padding=4, dilation=2),
        "match": nn.Conv1d(4, 6, 1),
        "head": nn.Linear(6, 2),
    }
    return whole(of(run, **parts), 2, 4, 9, time_axis=2)


def adaptively_pooled() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = torch.relu(m.conv(F.pad(x, (2, 0))))
        return m.head(F.adaptive_avg_pool1d(h, 1).squeeze(-1))

    return whole(of(run, conv=nn.Conv1d(4, 6, 3), head=nn.Linear(6, 2)), 2, 4, 9, time_axis=2)


def running_mean() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        return m.head(x.cumsum(dim=1) * 0.1)

    return whole(of(run, head=nn.Linear(4, 3)))


def differences() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        return m.gru(torch.cat([x, x - before], dim=-1))[0]

    return whole(of(run, gru=nn.GRU(8, 5, batch_first=True)))


def selective() -> StepSpec:
    """The front of a Mamba block: operations that torch's older exporter has no words for."""

    def run(m: Any, x: Any) -> Any:
        h, gate = m.into(m.norm(x)).chunk(2, dim=-1)
        h = F.silu(m.conv(h.mT)[..., :-3].mT)
        return x + m.out(torch.logaddexp(h, gate) * F.silu(gate))

    parts = {
        "norm": nn.RMSNorm(4),
        "into": nn.Linear(4, 12),
        "conv": nn.Conv1d(6, 6, 4, groups=6, padding=3),
        "out": nn.Linear(6, 4),
    }
    return whole(of(run, **parts))


def unfolded() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        windows = F.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1)
        return m.head(torch.cat([windows.flatten(2), torch.diff(x, dim=1, prepend=x[:, :1])], dim=-1))

    return whole(of(run, head=nn.Linear(16, 3)))


class Causal(nn.Module):
    """A convolution of SEANet: padded in front by its kernel without its stride; transposed: cut at the end by as much.

    Source: Defossez et al. 2022, "High Fidelity Neural Audio Compression".
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(layer)
        self.transposed = isinstance(layer, nn.ConvTranspose1d)
        self.rest = (layer.kernel_size[0] - 1) * layer.dilation[0] + 1 - layer.stride[0]

    def forward(self, x: Any) -> Any:
        if not self.transposed:
            return self.layer(F.pad(x, (self.rest, 0)))
        y = self.layer(x)
        return y[..., : y.shape[-1] - self.rest]


class Bottle(nn.Module):
    """The LSTM between the encoder and the decoder, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, 2)

    def forward(self, x: Any) -> Any:
        h = x.permute(2, 0, 1)
        return (self.lstm(h)[0] + h).permute(1, 2, 0)


class Residual(nn.Module):
    """A dilated convolution over samples, with a residual."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ELU(), Causal(nn.Conv1d(width, width // 2, 3, dilation=dilation)), nn.ELU(),
            Causal(nn.Conv1d(width // 2, width, 1)),
        )  # fmt: skip
        self.shortcut = Causal(nn.Conv1d(width, width, 1))

    def forward(self, x: Any) -> Any:
        return self.shortcut(x) + self.block(x)


RATIOS, WIDTH = (2, 3), 4
HOP = 6


def encoder() -> list[Any]:
    layers: list[Any] = [Causal(nn.Conv1d(1, WIDTH, 7))]
    width = WIDTH
    for ratio in RATIOS:
        down = Causal(nn.Conv1d(width, 2 * width, 2 * ratio, stride=ratio))
        layers += [Residual(width, 1), Residual(width, 3), nn.ELU(), down]
        width *= 2
    return [*layers, Bottle(width), nn.ELU(), Causal(nn.Conv1d(width, 5, 7))]


def decoder() -> list[Any]:
    width = WIDTH * 2 ** len(RATIOS)
    layers: list[Any] = [Causal(nn.Conv1d(5, width, 7)), Bottle(width)]
    for ratio in reversed(RATIOS):
        up = Causal(nn.ConvTranspose1d(width, width // 2, 2 * ratio, stride=ratio))
        layers += [nn.ELU(), up, Residual(width // 2, 1)]
        width //= 2
    return [*layers, nn.ELU(), Causal(nn.Conv1d(width, 1, 7))]


def codec_decoder() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        return m.decoder(x.transpose(1, 2)).reshape(x.shape[0], -1, HOP)

    return whole(of(run, decoder=nn.Sequential(*decoder())), 2, 9, 5)


def codec() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        return m.decoder(m.encoder(x.reshape(x.shape[0], 1, -1))).reshape(x.shape[0], -1, HOP)

    parts = {"encoder": nn.Sequential(*encoder()), "decoder": nn.Sequential(*decoder())}
    return whole(of(run, **parts), 2, 9, HOP)


ZOO = {
    "padded": ZooModule(padded, "Conv1d behind F.pad on the left, dilated, BatchNorm1d", "the past of each"),
    "pad_layers": ZooModule(pad_layers, "ConstantPad1d and ZeroPad1d before Conv1d", "the past of each, padding first"),
    "chomped": ZooModule(chomped, "Conv1d padded on both sides and cut on the right", "the past of each"),
    "adaptively_pooled": ZooModule(adaptively_pooled, "a causal convolution, pooled over time", "a running mean"),
    "codec_decoder": ZooModule(
        codec_decoder, "its decoder, with transposed convolutions", "past timesteps and samples of each, h and c"
    ),
    "codec": ZooModule(codec, "encoder and decoder as one model", "past samples of each, h and c"),
    "running_mean": ZooModule(running_mean, "cumsum over time", "the sum so far"),
    "selective": ZooModule(
        selective, "RMSNorm, a padded depthwise Conv1d, gates: the front of a Mamba block", "the past"
    ),
    "unfolded": ZooModule(
        unfolded, "windows by `unfold`, differences by `diff` that begin with zero", "the past, the timestep before"
    ),
}
