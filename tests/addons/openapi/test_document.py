"""The table of the documented routes has those of the service."""

from __future__ import annotations

from stepwell.addons.openapi.streams import ROUTES
from stepwell.app import create_app
from stepwell.settings import Settings


def test_each_documented_route_of_the_service_exists_and_each_route_has_a_tag() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    operations = {f"{method.upper()} {path}": found for path, route in paths.items() for method, found in route.items()}

    assert [route for route in ROUTES if route not in operations] == []
    assert [route for route, operation in operations.items() if not operation.get("tags")] == []
