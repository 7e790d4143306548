"""Recorded data: timesteps of many streams in CSV, Parquet and NPZ files."""

from __future__ import annotations

from stepwell.addons.recorded.blocks import Block, Group, Rows, gathered
from stepwell.addons.recorded.data import RecordedData, open_data
from stepwell.addons.recorded.errors import RecordedDataError

__all__ = ["Block", "Group", "RecordedData", "RecordedDataError", "Rows", "gathered", "open_data"]
