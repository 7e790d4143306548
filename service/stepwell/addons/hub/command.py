"""`stepwell push` and `stepwell pull`: model files to and from the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stepwell.addons.hub import repository as hub
from stepwell.commands.tables import Json, key_value_table, parity_lines, print_json, show

Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.")]
Token = Annotated[
    str | None, typer.Option(envvar="HF_TOKEN", help="An access token. Default: that of `hf auth login`.")
]


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A step graph, as `stepwell export` writes it.")],
    repository: Repository,
    *,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Upload a step graph to the Hugging Face Hub, with the report of its verification as the model card."""
    done = hub.push(file, repository, private=private, message=message, token=token)
    if as_json:
        print_json(asdict(done))
        return
    facts = {"page": done.url, "commit": done.revision, "files": ", ".join(done.files)}
    show(key_value_table(f"pushed to {repository}", facts))


def pull(
    repository: Repository,
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write. Default: models/NAME.onnx.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    file: Annotated[str, typer.Option(help="The model file in the repository.")] = hub.MODEL_FILE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another file.")] = False,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Download a step graph from the Hugging Face Hub into the models folder; it is checked first."""
    done = hub.pull(repository, output, revision=revision, file=file, token=token, overwrite=overwrite)
    if as_json:
        print_json({**asdict(done), "path": str(done.path)})
        return
    facts = {
        "file": str(done.path),
        "commit": done.revision,
        "fingerprint": done.described["fingerprint"],
        "parity": parity_lines(done.described["parity"]),
        "next": "stepwell serve, or POST /v1/models/reload to a service that runs",
    }
    show(key_value_table(f"pulled {repository}", facts))
