"""Tests of `model_export/stepwell_export/graph/`."""
