"""The kustomize base and overlays, from what the chart renders: objects, and patches of those that differ."""

from __future__ import annotations

from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

HEADER: Final = "# Written by `python -m scripts.kubernetes` from deploy/helm/stepwell; change that.\n"
Object = dict[str, Any]
_MERGE_KEYS: Final = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""The key by which Kubernetes merges the elements of a list; other lists are replaced."""


def base_files(objects: list[Object]) -> dict[str, str]:
    """Return the files of the base by name: one for each object, and the kustomization."""
    files = {file_name(one): _dump(one) for one in objects}
    return files | {"kustomization.yaml": _kustomization(resources=sorted(files))}


def overlay_files(objects: list[Object], base: list[Object]) -> dict[str, str]:
    """Return the files of an overlay by name: objects that the base does not have, and patches of the others.

    Raises:
        ValueError: The overlay lacks an object of the base.
    """
    theirs = {_key(one): one for one in base}
    if missing := theirs.keys() - {_key(one) for one in objects}:
        raise ValueError(f"an overlay lacks {sorted(missing)} of the base")
    added = {file_name(one): _dump(one) for one in objects if _key(one) not in theirs}
    patches = {
        f"patch-{file_name(one)}": _dump(_identity(one) | patch)
        for one in objects
        if _key(one) in theirs and (patch := difference(theirs[_key(one)], one))
    }
    kustomization = _kustomization(resources=["../../base", *sorted(added)], patches=sorted(patches))
    return added | patches | {"kustomization.yaml": kustomization}


def component_files(objects: list[Object], base: list[Object]) -> dict[str, str]:
    """Return the files of a component by name: the objects that the base does not have."""
    theirs = {_key(one) for one in base}
    files = {file_name(one): _dump(one) for one in objects if _key(one) not in theirs}
    kind = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component", "resources": sorted(files)}
    return files | {"kustomization.yaml": _dump(kind)}


def difference(old: Object, new: Object) -> Object:
    """Return the strategic merge patch that makes `new` of `old`.

    A key that is removed is null. Lists are merged as Kubernetes does.
    """
    patch: Object = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        before = old.get(key)
        if value == before:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            patch[key] = difference(before, value)
        elif (merge_key := _MERGE_KEYS.get(key)) and isinstance(before, list):
            patch[key] = _list_difference(before, value, merge_key)
        else:
            patch[key] = value
    return patch


def file_name(one: Object) -> str:
    """Return the name of an object's file: its kind, and the part of its name behind `stepwell`."""
    return f"{one['kind'].lower()}{one['metadata']['name'].removeprefix('stepwell')}.yaml"


def _list_difference(old: list[Object], new: list[Object], merge_key: str) -> list[Object]:
    before = {one[merge_key]: one for one in old}
    kept = {one[merge_key] for one in new}
    changed = [
        {merge_key: one[merge_key]} | difference(before.get(one[merge_key], {}), one)
        for one in new
        if one != before.get(one[merge_key])
    ]
    return changed + [{"$patch": "delete", merge_key: name} for name in before if name not in kept]


def _key(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _identity(one: Object) -> Object:
    return {"apiVersion": one["apiVersion"], "kind": one["kind"], "metadata": {"name": one["metadata"]["name"]}}


def _kustomization(*, resources: list[str], patches: list[str] | None = None) -> str:
    kustomization: Object = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    kustomization["resources"] = resources
    if patches:
        kustomization["patches"] = [{"path": path} for path in patches]
    return _dump(kustomization)


def _dump(one: Object) -> str:
    text: str = yaml.safe_dump(one, sort_keys=False, width=110)
    return HEADER + text
