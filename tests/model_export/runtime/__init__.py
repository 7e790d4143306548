"""Tests of what serving needs of a model file."""
