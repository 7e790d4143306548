"""`Case`: one generated model, as numbers and names that follow from its seed alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from campaign.exporter.ops import Setting
from campaign.exporter.rare import CELLS, OTHER_ROWS, SEQUENCE, STEPWISE

FrontEnd = Literal["keras", "torch", "states", "onnx", "adopt"]
FRONT_ENDS: Final[tuple[FrontEnd, ...]] = get_args(FrontEnd)
"""`states` is PyTorch with modules that take and return their states."""

Place = Literal["before", "inside", "behind", "nowhere"]
"""Where the rare condition is: in front of a recurrence, in its cell, behind it; or there is none."""

Head = Literal["each", "last", "mean", "recent"]
"""What is answered: each timestep, the last one, or the mean of all, or of as many of the last as the period has."""

PLAIN_SHARE: Final = 0.3
"""Share of models without anything rare."""

LIMITS: Final = (6.0, 10.0, 50.0, 1000.0)
PERIODS: Final = (23, 60, 100, 300, 700, 2100, 3600)
CHUNKED: Final = tuple(name for name in SEQUENCE if name not in OTHER_ROWS)
"""Rare conditions along time: of a graph to adopt, within each of its chunks alone."""

RECENT: Final = "mean of the recent past"
"""A head that forgets after the period."""

KEEP_WIDTH: Final = ("relu", "norm")
"""Layers that have as many outputs as inputs."""

BY_PLACE: Final = "mode by place"
"""A loop in Python that does something else from a timestep on; of PyTorch alone."""

IDS: Final = ("ids modulo", "ids divided")
"""Rare conditions of integer inputs, in front of an embedding."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Attributes:
        front_end: What it is written in.
        seed: The campaign's seed.
        index: Which of the seed's models it is.
        rare: The rare condition; empty: there is none.
        place: Where it is.
        setting: Its numbers.
        blocks: The ordinary layers, in order.
        head: What is answered.
        features: Numbers of a timestep.
        units: Numbers of a layer.
    """

    front_end: FrontEnd
    seed: int
    index: int
    rare: str
    place: Place
    setting: Setting
    blocks: tuple[str, ...]
    head: Head
    features: int
    units: int

    @property
    def id(self) -> str:
        """Return the name by which it is generated again."""
        return f"{self.front_end}-{self.seed}-{self.index}"

    @property
    def takes_ids(self) -> bool:
        """Whether its input is one integer for each timestep."""
        return self.rare in IDS or "embedding" in self.blocks

    @property
    def described(self) -> str:
        """Return it for people."""
        if not self.rare:
            return f"{' + '.join(self.blocks)}, {self.head}"
        at = self.setting
        return (
            f"{self.rare} {self.place} {' + '.join(self.blocks) or 'nothing'}, {self.head}, limit {at.limit:g}, "
            f"period {at.period}, way {at.how}"
        )


def draw(front_end: FrontEnd, seed: int, index: int) -> Case:
    """Return the model of a seed and an index."""
    rng = np.random.default_rng([seed, index, zlib.crc32(front_end.encode())])
    setting = Setting(
        float(rng.choice(LIMITS)),
        int(rng.choice(PERIODS)) + int(rng.integers(0, 5)),
        int(rng.integers(0, 12)),
    )
    is_stepwise = front_end in ("states", "adopt")
    beyond = [*SEQUENCE, *SEQUENCE, *IDS, RECENT]
    if front_end == "torch":
        beyond += [BY_PLACE, BY_PLACE]
    if is_stepwise:
        beyond = [*OTHER_ROWS, *CHUNKED] if front_end == "adopt" else [*OTHER_ROWS]
    names = [*CELLS, *STEPWISE, *beyond]
    rare = str(rng.choice([name for name in names if name not in CELLS or CELLS[name].is_rare]))
    plain_cells = [name for name, cell in CELLS.items() if not cell.is_rare]
    layers = plain_cells if is_stepwise else ["lstm", "gru", "rnn", "dense", "conv", *KEEP_WIDTH, *plain_cells]
    blocks = [str(name) for name in rng.choice(layers, int(rng.integers(1, 3)))]
    place: Place
    if rng.random() < PLAIN_SHARE:
        rare, place = "", "nowhere"
        if not is_stepwise and rng.random() < 0.15:
            blocks.insert(0, "embedding")
    elif rare == RECENT:
        place = "behind"
    elif rare in CELLS:
        place, blocks = "inside", blocks[:1] if rng.random() < 0.5 else []
    else:
        place = "before" if rare in (*IDS, BY_PLACE) or rng.random() < 0.6 else "behind"
    heads: list[Head] = ["each"] if is_stepwise else ["each", "each", "each", "last", "mean"]
    if rare == RECENT:
        heads = ["recent"]
    head, features, units = heads[int(rng.integers(len(heads)))], int(rng.integers(1, 5)), int(rng.integers(2, 7))
    if "norm" in blocks:
        features = max(2, features)  # a single number is 0 once it is normalized, and a model that gives 0 is weak
    return Case(
        front_end,
        seed,
        index,
        rare,
        place,
        setting,
        tuple(blocks),
        head,
        features,
        units,
    )


def find(name: str) -> Case:
    """Return the model of this name, for example `keras-7-12`.

    Raises:
        ValueError: It is no such name.
    """
    front_end, seed, index = name.split("-")
    if front_end not in FRONT_ENDS:
        raise ValueError(f"{front_end!r}; expected one of {', '.join(FRONT_ENDS)}")
    return draw(front_end, int(seed), int(index))
