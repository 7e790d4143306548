"""Tests of the stages in front of a model and behind it."""
