"""`ReferenceModel`: a trained model as the verification runs it, on whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from stepwell_export.runtime.errors import ParityError, StepwellError
from stepwell_export.runtime.manifest import Array

PREFIXES = 64
"""The longest sequences of which every beginning is run, where the original has one answer for a whole sequence."""

_FEW_PREFIXES = (1, 2, 3, 5, 17)
"""Beginnings of longer ones that are run, besides the whole."""


@dataclass(frozen=True, slots=True)
class PrefixAnswers:
    """An original's answers for some beginnings of the sequences.

    Attributes:
        steps: Timesteps that each beginning has, from 1, ascending.
        values: Shape `(batch, len(steps), *shape)`: the answers after so many timesteps.
    """

    steps: Sequence[int]
    values: Array


ReferenceModel = Callable[[Mapping[str, Array]], Mapping[str, Array | PrefixAnswers]]
"""Whole sequences `{input: (batch, T, *shape)}` to the answer for every prefix `{output: (batch, T, *shape)}`,
or to the answers for some prefixes."""

Progress = Callable[[str, int, int], None]
"""What is being done, and how many of how many parts are done."""


def prefix_answers(
    run: Callable[[int], Mapping[str, Array]],
    whole: Mapping[str, Array],
    names: Sequence[str],
    length: int,
    beginnings: Sequence[int] | None = None,
) -> dict[str, PrefixAnswers]:
    """Return the answers of outputs that have one for a whole sequence, for some of its beginnings too.

    Args:
        run: Runs the original on so many of the first timesteps, and returns the answers by output. A beginning may be
            too short for it.
        whole: The answers for all timesteps.
        names: The outputs, shape `(batch, *shape)` each.
        length: How many timesteps there are.
        beginnings: Numbers of timesteps, ascending; None: all up to `PREFIXES`, or few of a longer sequence.
    """
    if beginnings is None:
        beginnings = range(1, length) if length <= PREFIXES else _FEW_PREFIXES
    runs: dict[int, Mapping[str, Array]] = {}
    for steps in (steps for steps in beginnings if steps < length):
        with suppress(Exception):  # whatever a framework raises where a beginning is too short
            answers = run(steps)
            if all(answers[name].shape == whole[name].shape for name in names):
                runs[steps] = answers
    runs[length] = whole
    return {
        name: PrefixAnswers(list(runs), np.stack([answers[name] for answers in runs.values()], axis=1))
        for name in names
    }


def run_reference(
    original: ReferenceModel, data: Mapping[str, Array], judged: Sequence[str]
) -> dict[str, PrefixAnswers]:
    """Return the original's answers of these outputs, for those timesteps for which it gives any.

    Raises:
        ParityError: It has no such output, or another number of answers than timesteps.
    """
    rows, length = next(iter(data.values())).shape[:2]
    try:
        given = original({name: array.copy() for name, array in data.items()})
    except StepwellError:
        raise
    except Exception as exc:
        reason = next(iter(str(exc).strip().splitlines()), "")[:300].rstrip(".")
        raise ParityError(
            f"The original fails on {rows} sequences of {length} timesteps: {type(exc).__name__}: {reason}.",
            fix="It must take any number of sequences: look for a batch size that is written into it, in an initial "
            "state say.",
        ) from exc
    answers = {}
    for name in judged:
        if name not in given:
            raise ParityError(
                f"The original has no output {name!r}; it gives {sorted(given)}.",
                fix="Give the step graph's outputs the names of the original's.",
            )
        values = given[name]
        answer = values if isinstance(values, PrefixAnswers) else PrefixAnswers(range(1, length + 1), values)
        if answer.values.shape[:2] != (rows, len(answer.steps)):
            raise ParityError(
                f"The original gives output {name!r} for {list(answer.values.shape[:2])} sequences and timesteps; "
                f"expected {[rows, len(answer.steps)]}.",
                fix="The original must give one answer for every timestep of every sequence.",
            )
        answers[name] = answer
    return answers
