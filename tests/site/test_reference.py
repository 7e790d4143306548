"""The built reference has every setting, command, error code, metric, public name, route and message."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from fastapi.routing import APIRoute

import stepwell
import stepwell_client as client
from stepwell.app import create_app
from stepwell.commands.cli import make_app
from stepwell.error_codes import CODES
from stepwell.metrics import Metrics
from stepwell.settings import PREFIX, Settings, describe_settings, setting_groups
from tests.site.pages import Site


def test_the_page_of_settings_has_each_with_flag_variable_and_description(site: Site) -> None:
    page = site.page("reference/settings.html")
    flags, text = {code.split(" / ")[0] for code in page.code}, " ".join(page.text.split())

    for name in setting_groups():
        assert name in page.ids
        assert f"{PREFIX}{name.upper()}" in page.code
        assert f"--{name.replace('_', '-')}" in flags
        assert describe_settings()[name].split("`")[0] in text, name


def commands() -> list[tuple[str, ...]]:
    """Return the words of each command, as `--help` lists them."""
    import typer

    def inner(app: typer.Typer) -> dict[str, Any]:
        return dict(getattr(typer.main.get_command(app), "commands", {}))

    found: list[tuple[str, ...]] = []
    for name in inner(make_app(None)):
        found.append((name,))
        found += [(name, one) for one in getattr(inner(make_app(name))[name], "commands", {})]
    return found


def test_the_page_of_commands_has_each(site: Site) -> None:
    ids = site.page("reference/commands.html").ids

    assert [words for words in commands() if "-".join(("stepwell", *words)) not in ids] == []


def test_a_command_is_shown_as_its_help_prints_it(site: Site) -> None:
    command = [sys.executable, "-P", "-m", "stepwell", "release", "start", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    options = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    shown = next(code for code in site.page("reference/commands.html").code if "stepwell release start " in code)
    assert options
    assert [option for option in options if option not in shown] == []


def test_the_page_of_errors_has_each_code_and_links_to_what_to_do(site: Site) -> None:
    page = site.page("reference/errors.html")

    for code, row in CODES.items():
        assert code in page.code
        assert f"../docs/errors.html#{code}" in page.links
        assert row.advice.replace("`", "") in page.text, code


def test_the_page_of_metrics_has_each(site: Site) -> None:
    exposed = Metrics("0").render()[0].decode().splitlines()
    names = {line.split()[2] for line in exposed if line.startswith("# TYPE")}

    assert names - site.page("reference/metrics.html").code == set()


def test_the_page_of_the_python_api_has_each_name_and_method(site: Site) -> None:
    names = {*stepwell.__all__, *client.__all__}
    names |= {
        f"{cls.__name__}{name}"
        for cls in (client.Client, client.Model, client.Stream, client.AsyncStream, client.Feed)
        for base in cls.__mro__[:-1]
        for name, one in vars(base).items()
        if name[0] != "_" and callable(one)
    }

    assert [name for name in names if name.lower() not in site.page("reference/python.html").ids] == []


def test_the_page_of_the_http_api_has_each_route_and_schema(site: Site) -> None:
    app = create_app(Settings())
    routes = [
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]

    page = site.page("reference/http.html")
    assert [route for route in routes if route not in page.text] == []
    assert [name for name in app.openapi()["components"]["schemas"] if name.lower() not in page.ids] == []


def test_the_page_of_websockets_has_each_route_message_and_field(site: Site) -> None:
    document: dict[str, Any] = json.loads((site.folder / "reference" / "asyncapi.json").read_text())
    page = site.page("reference/websockets.html")

    assert [one["address"] for one in document["channels"].values() if f"WS {one['address']}" not in page.text] == []
    assert [name for name in document["components"]["messages"] if name.lower() not in page.ids] == []
    assert "?grouped=" in page.text
    fields = {name for one in document["components"]["schemas"].values() for name in one.get("properties", {})}
    assert fields - page.code == set()
