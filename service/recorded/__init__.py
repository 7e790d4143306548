"""Recorded data: timesteps of many streams in CSV, Parquet and NPZ files."""

from __future__ import annotations

from service.recorded.blocks import Block, Group, Rows, gathered
from service.recorded.data import RecordedData, open_data
from service.recorded.errors import RecordedDataError

__all__ = ["Block", "Group", "RecordedData", "RecordedDataError", "Rows", "gathered", "open_data"]
