"""`stepwell recipes`: list the published graphs that `adopt` and `export` know."""

from __future__ import annotations

from stepwell.commands.interrupted import reported_interrupt
from stepwell.commands.tables import Json, print_json, show, table
from stepwell_export.adoption.recipes import EXPORTED, RECIPES


@reported_interrupt()
def recipes(as_json: Json = False) -> None:
    """List the published graphs that `adopt` knows by their structure, and what `export` makes of them."""
    known = [
        {"name": one.name, "what": one.what, "source": one.source, "export": _source(one.name), "hop": one.hop}
        for one in RECIPES
    ]
    if as_json:
        print_json(known)
        return
    shown = ("name", "what", "source", "export")
    show(table("", shown, [[str(one[key]) for key in shown] for one in known]))


def _source(name: str) -> str:
    """Return the SOURCE of `stepwell export` that the graph of a recipe is a part of."""
    exported, graphs = next((exported, graphs) for exported, graphs in EXPORTED.items() if name in graphs)
    return f"recipe:{exported}={','.join(f'{graph}.onnx' for graph in graphs)}"
