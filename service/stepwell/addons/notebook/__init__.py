"""`stepwell.run`: a trained model exported, served in this process, and plotted, for notebooks."""

from __future__ import annotations

from stepwell.addons.notebook.live_model import LiveModel, run

__all__ = ["LiveModel", "run"]
