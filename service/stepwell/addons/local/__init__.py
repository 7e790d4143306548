"""`stepwell.LocalModel`: a model file run in this program, on streams that can move to a service and back."""

from __future__ import annotations

from stepwell.addons.local.local_model import LocalModel, LocalStream

__all__ = ["LocalModel", "LocalStream"]
