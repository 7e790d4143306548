"""`Application`: FastAPI, with a short way for the plain requests of hot routes.

Every route is declared in FastAPI and works there. FastAPI's machinery costs several times what a step costs, so a
hot request with a plain head is answered before it, under any ASGI server; the answer is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.calls import answered
from service.api.context import Context
from service.api.hot import HOT_ROUTES, VERSION, Fields, HotRoute, call_of, fields_of
from service.api.http import Answer, answer_of, read_body

_VERSION = re.compile(VERSION.encode())
Plain = tuple[HotRoute, Sequence[str], int | None, Fields]


class Application(FastAPI):
    """The service as an ASGI application.

    Attributes:
        hot_routes: Those with a short way.
    """

    def __init__(self, context: Context, **more: Any) -> None:
        """Prepare.

        Args:
            context: What every route needs; also `state.context`.
            more: What FastAPI takes.
        """
        super().__init__(**more)
        self.state.context = self._context = context
        self.hot_routes = [(route, re.compile(route.path)) for route in HOT_ROUTES]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        plain = self._plain(scope) if scope["type"] == "http" else None
        if plain is None:
            await super().__call__(scope, receive, send)
            return
        response = await answer_of(self._answer(plain, receive), self._context, plain[0].dialect)
        await response(scope, receive, send)

    async def _answer(self, plain: Plain, receive: Receive) -> Response:
        context, fields = self._context, plain[3]
        call = call_of(plain[0], context, *plain[1:])
        body = await answered(call, await read_body(receive, fields.length, context))
        return Answer(body, call.answer_form.value, headers=call.more_headers)

    def _plain(self, scope: Scope) -> Plain | None:
        """Return what a plain request of a hot route asks for, None for any other."""
        if scope["method"] != "POST" or scope.get("root_path") or b"%" in scope.get("raw_path", b"%"):
            return None
        version = None
        if query := scope["query_string"]:
            match = _VERSION.fullmatch(query)
            if match is None:
                return None
            version = int(match[1])
        for route, path in self.hot_routes:
            matched = path.fullmatch(scope["path"])
            if matched is not None:
                fields = fields_of(scope["headers"])
                return None if fields is None else (route, matched.groups(), version, fields)
        return None
