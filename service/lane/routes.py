"""The table of hot routes: which request lines they are, and what call each makes of a request.

A further hot route is a row here: a pattern of its request line, and a function from the match and the headers to a
`Call`. The route stays declared in FastAPI, and answers the same there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from service.api.calls import Call, ColumnsCall, StepCall
from service.api.context import Context
from service.engine.types import StreamKey
from service.lane.heads import Fields


class HotRoute(NamedTuple):
    """A route of the lane.

    Attributes:
        prefix: How each of its requests begins.
        line: Matches the whole request line, with its line end; whatever it does not match goes the declared way.
        call: Makes the call, or raises the `ServiceError` that the declared route would answer.
    """

    prefix: bytes
    line: re.Pattern[bytes]
    call: Callable[[Context, re.Match[bytes], Fields], Call]


def _line(path: str) -> re.Pattern[bytes]:
    return re.compile(rf"POST {path}(?:\?version=([1-9][0-9]{{0,8}}))? HTTP/1\.1\r\n".encode())


_MODEL = r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
_STREAM = r"/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128})"


def _step(context: Context, line: re.Match[bytes], fields: Fields) -> StepCall:
    model, stream, what, number = line.groups()
    tenant = context.caller(fields.authorization, "step").tenant
    version = None if number is None else int(number)
    served = context.engine.shelf.get(model.decode(), version)
    return StepCall(
        context,
        served,
        StreamKey(tenant, served.name, stream.decode()),
        what == b"steps",
        version,
        fields.idempotency_key,
        fields.form,
        fields.answer_form,
    )


def _columns(context: Context, line: re.Match[bytes], fields: Fields) -> ColumnsCall:
    model, what, number = line.groups()
    tenant = context.caller(fields.authorization, "step").tenant
    version = None if number is None else int(number)
    served = context.engine.shelf.get(model.decode(), version)
    return ColumnsCall(
        context,
        served,
        tenant,
        what == b"steps",
        version,
        fields.idempotency_key,
        fields.form,
        fields.answer_form,
    )


HOT_ROUTES = (
    HotRoute(b"POST /v1/models/", _line(f"{_MODEL}{_STREAM}/(steps?)"), _step),
    HotRoute(b"POST /v1/models/", _line(f"{_MODEL}/(steps?)"), _columns),
)
