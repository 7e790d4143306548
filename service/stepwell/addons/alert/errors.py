"""The errors of `stepwell alert`."""

from __future__ import annotations

from stepwell_export.runtime.errors import StepwellError


class AlertError(StepwellError):
    """Alarms cannot be raised or delivered."""

    code = "alert_failed"


class AlertStartError(AlertError):
    """The process refuses to start, because something that it needs is not there."""

    code = "cannot_start"


class LeaseLostError(AlertError):
    """Another process of the group has the lease now."""

    code = "lease_lost"
