"""The gRPC status of each error: that of the HTTP routes, as a code of gRPC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from grpc import StatusCode

from stepwell.addons.oip.errors import oip_status
from stepwell.errors import ServiceError
from stepwell.requests.problems import RETRY_AFTER_S

_CODES: Final[Mapping[int, StatusCode]] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
}
_RETRIED: Final = (429, 503)


def code_of(error: ServiceError) -> StatusCode:
    """Return the gRPC status code of an error."""
    return _CODES.get(oip_status(error), StatusCode.INVALID_ARGUMENT)


def metadata_of(error: ServiceError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of an error: after how long gRPC's own retries may send the request again."""
    if oip_status(error) not in _RETRIED:
        return ()
    return (("grpc-retry-pushback-ms", str(1000 * max(RETRY_AFTER_S, math.ceil(error.retry_after_s or 0)))),)
