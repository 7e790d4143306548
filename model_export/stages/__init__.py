"""Stages in front of a model and behind it: scaling, missing values, lags; one graph with the model's.

Each stage is exported as part of the graph, and verified against its definition in NumPy.
"""

from __future__ import annotations

from model_export.stages.columns import OneHot, Select
from model_export.stages.history import EWMA, Diff, Impute, Lag, RollingMean, RollingStd
from model_export.stages.pipeline import Pipeline
from model_export.stages.scaling import Clip, Log1p, MinMax, Standardize
from model_export.stages.sklearn import from_sklearn
from model_export.stages.stage import Stage

__all__ = [
    "EWMA", "Clip", "Diff", "Impute", "Lag", "Log1p", "MinMax", "OneHot", "Pipeline", "RollingMean", "RollingStd",
    "Select", "Stage", "Standardize", "from_sklearn",
]  # fmt: skip
