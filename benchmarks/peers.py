"""The servers that Stepwell is compared with, installed from PyPI into separate environments."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

_MOSEC = ("mosec", "onnxruntime", "numpy", "msgspec")
_TRITON = ("nvidia-pytriton==0.7.*", "onnxruntime", "numpy<2")  # its wheel brings Triton's server itself


@dataclass(frozen=True, slots=True)
class Peers:
    """The Python of each peer's environment, or None if the peer is not compared."""

    mosec: Path | None = None
    triton: Path | None = None


def install(folder: Path, wanted: set[str]) -> Peers:
    """Install the selected peers that are not installed yet."""
    return Peers(
        _environment(folder / "mosec", _MOSEC) if "mosec" in wanted else None,
        _environment(folder / "triton", _TRITON) if "triton" in wanted else None,
    )


def _environment(folder: Path, packages: tuple[str, ...]) -> Path:
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing {packages[0]} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python
