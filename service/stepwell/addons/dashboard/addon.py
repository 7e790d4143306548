"""The dashboard at `/`, the page of the API at `/docs`, which fetches the OpenAPI document, and that of the errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from stepwell.addons.dashboard.error_page import error_page
from stepwell.asgi.http import RawResponse
from stepwell.service_addon import ServiceAddon

_PAGE: Final = Path(__file__).with_name("page")
_REFERENCE: Final = Path(__file__).with_name("reference")
_PAGE_HEADERS: Final = {
    # The page loads everything from this service; 'self' covers the WebSocket too.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""The headers of every page."""
_HEADERS: Final = {**_PAGE_HEADERS, "x-content-type-options": "nosniff"}
_HIDDEN_WARNING: Final = b'<p id="open-warning" class="notice" role="alert" hidden'


class Dashboard(ServiceAddon):
    """Serves the pages; that of the API is left out in production."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""
        app.add_api_route("/", self.page, methods=["GET"], include_in_schema=False)
        app.mount("/dashboard", PageFiles(directory=_PAGE), name="dashboard")
        app.add_api_route("/docs/errors", self.errors, methods=["GET"], include_in_schema=False)
        if not self.context.settings.production:
            app.add_api_route("/docs", self.docs, methods=["GET"], include_in_schema=False)
            app.mount("/reference", PageFiles(directory=_REFERENCE), name="reference")

    async def page(self, _request: Request) -> Response:
        """Return the dashboard, with a warning if the API is open to other machines without keys."""
        page = _PAGE / "index.html"
        if self.context.settings.open_address is None:
            return FileResponse(page, headers=_HEADERS)
        with_warning = page.read_bytes().replace(_HIDDEN_WARNING, _HIDDEN_WARNING.removesuffix(b" hidden"))
        return RawResponse(with_warning, "text/html; charset=utf-8", headers=_PAGE_HEADERS)

    async def errors(self, _request: Request) -> Response:
        """Return the page with the meaning of each error code, which the `type` of problems links to."""
        return RawResponse(error_page(), "text/html; charset=utf-8", headers=_PAGE_HEADERS)

    async def docs(self, _request: Request) -> Response:
        """Return the page of the API."""
        return FileResponse(_REFERENCE / "index.html", headers=_HEADERS)


class PageFiles(StaticFiles):
    """Static files of a page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file with the page's headers."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response
