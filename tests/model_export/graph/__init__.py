"""Tests of `model_export/graph/`."""
