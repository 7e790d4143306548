"""The values of the fields `applied` and `retry` of a response, and of `return` of a request."""

from __future__ import annotations

from typing import Literal

Applied = Literal["no", "yes", "unknown"]
"""Whether a request was applied to its stream."""
Retry = Literal["same", "resend_from", "never"]
"""What the client may do next: send the same request again, resend from `expected`, or neither."""
ReturnMode = Literal["all", "last", "none"]
"""Which timesteps of a chunk have their outputs in the response."""
