"""The setting `fleet_site`."""

from __future__ import annotations

from stepwell import extend


class FleetSettings(extend.AddonSettings):
    """The settings of the fleet's overview."""

    fleet_site: str = "unknown"
    """Where this service runs, for the overview."""
