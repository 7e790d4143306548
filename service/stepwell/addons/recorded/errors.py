"""`RecordedDataError`."""

from __future__ import annotations

from stepwell_export.runtime.errors import StepwellError


class RecordedDataError(StepwellError):
    """A file of recorded data cannot be read, or has values that the model does not accept."""

    code = "bad_data"
