"""The service of the tests of routes."""

from __future__ import annotations

from tests.api.conftest import service

__all__ = ["service"]
