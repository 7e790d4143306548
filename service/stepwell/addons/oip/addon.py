"""`OpenInference`: the routes of the Open Inference Protocol, with Triton's errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fastapi import FastAPI

from stepwell.addons.oip.errors import OIP
from stepwell.addons.oip.infer_handler import InferHandler, make_infer_handler
from stepwell.addons.oip.routes import add_routes
from stepwell.requests.context import AppContext
from stepwell.requests.error_formats import ErrorFormat
from stepwell.requests.hot_routes import HotRoute, RequestHeaders
from stepwell.service_addon import ServiceAddon

_MODEL: Final = r"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
_VERSION: Final = r"/versions/([1-9][0-9]{0,8})"


class OpenInference(ServiceAddon):
    """Serves every model under `/v2`, beside the native routes."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""
        add_routes(app, self.context)

    def hot_routes(self) -> Iterable[HotRoute]:
        """Return the two routes of infer requests."""
        for path, name in (
            (_MODEL, "/v2/models/{model}"),
            (_MODEL + _VERSION, "/v2/models/{model}/versions/{version}"),
        ):
            yield HotRoute("/v2/models/", f"{path}/infer", f"POST {name}/infer", _infer, OIP)

    def error_formats(self) -> Mapping[str, ErrorFormat]:
        """Return Triton's errors for `/v2` and all below it."""
        return {"v2": OIP}


def _infer(context: AppContext, parts: Sequence[str], _version: int | None, headers: RequestHeaders) -> InferHandler:
    model, *versions = parts
    return make_infer_handler(context, model, versions[0] if versions else None, headers)
