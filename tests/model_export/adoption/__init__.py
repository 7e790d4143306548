"""Tests of `stepwell adopt`."""
