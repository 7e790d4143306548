"""Tests of `model_export/structure/`."""
