"""The tests that packages with a broker of their own inherit; they need pytest."""

from __future__ import annotations

from stepwell.addons.connect.broker_laws import BrokerLaws

__all__ = ["BrokerLaws"]
