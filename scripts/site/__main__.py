"""Builds the docs site, or serves it on this machine: `python -m scripts.site build | serve`."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scripts.site.build import SiteError, build


def main() -> int:
    """Run the command of the arguments. Exit codes: 0 done, 1 the site was not built, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description="The docs site, from the pages and the code.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("build", "Build the site."), ("serve", "Build the site and serve it on this machine.")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--out", type=Path, default=Path("site"), metavar="FOLDER", help="default: site")
        command.add_argument(
            "--versions", action="store_true", help="build into FOLDER/VERSION, with a menu of all versions there"
        )
    commands.choices["serve"].add_argument("--port", type=int, default=8001, help="default: 8001")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what MkDocs finds in the pages
    try:
        site = build(arguments.out.resolve(), versions=arguments.versions)
    except SiteError as exc:
        print(f"scripts/docs: {exc}", file=sys.stderr)
        return 1
    print(f"The site is in {site}; open {site / 'index.html'}", file=sys.stderr)
    return _serve(arguments.out, arguments.port) if arguments.command == "serve" else 0


def _serve(folder: Path, port: int) -> int:
    """Serve a folder until Ctrl-C."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as exc:
        print(
            f"scripts/docs: cannot listen on port {port}: {exc.strerror}. Choose another one: --port", file=sys.stderr
        )
        return 1
    print(f"http://127.0.0.1:{port}", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
