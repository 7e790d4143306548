"""Stages in front of a model and behind it: scaling, missing values, lags; one graph with the model's.

Each stage is exported as part of the graph, and verified against its definition in NumPy. Stages that other packages
register in the group `stepwell.stages` are attributes of this module, too.
"""

from __future__ import annotations

from typing import Any

from stepwell_export.runtime.registered import load, registered
from stepwell_export.stages.arithmetic import Add, Multiply
from stepwell_export.stages.audio import PCM16, STFT, Context, Frames, InverseSTFT, OverlapAdd
from stepwell_export.stages.columns import OneHot, Select
from stepwell_export.stages.learning import AdaptiveThreshold, Conformal, IntervalCoverage, Readout
from stepwell_export.stages.missing_and_lags import EWMA, Diff, Impute, Lag, RollingMean, RollingStd
from stepwell_export.stages.pipeline import Part, Pipeline
from stepwell_export.stages.scaling import Clip, Log1p, MinMax, Standardize
from stepwell_export.stages.sklearn import from_sklearn
from stepwell_export.stages.spectra import RFFT, InverseRFFT, Log, Magnitude, Mel, Power
from stepwell_export.stages.stage import Stage

__all__ = [
    "EWMA", "PCM16", "RFFT", "STFT", "AdaptiveThreshold", "Add", "Clip", "Conformal", "Context", "Diff", "Frames",
    "Impute", "IntervalCoverage", "InverseRFFT", "InverseSTFT", "Lag", "Log", "Log1p", "Magnitude", "Mel", "MinMax",
    "Multiply", "OneHot", "OverlapAdd", "Part", "Pipeline", "Power", "Readout", "RollingMean", "RollingStd", "Select",
    "Stage", "Standardize", "from_sklearn",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a stage that another package registers.

    Raises:
        AttributeError: None does.
        AddonError: It cannot be imported, or is no class.
    """
    point = registered("stepwell.stages").get(name)
    if point is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and no installed package registers it")
    return load(point, type)


def __dir__() -> list[str]:
    return sorted({*globals(), *registered("stepwell.stages")})
