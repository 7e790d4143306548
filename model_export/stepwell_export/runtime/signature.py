"""Holds a manifest against the graph that it describes: names and dtypes of inputs and outputs."""

from __future__ import annotations

import onnxruntime as ort

from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import Manifest

ORT_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip


def check_signature(manifest: Manifest, session: ort.InferenceSession, where: str) -> None:
    """Compare names and dtypes of the manifest with the graph's own (declared shapes may lie).

    Args:
        manifest: What is declared.
        session: The graph.
        where: What it was loaded from, for the message.

    Raises:
        ManifestError: They differ.
    """
    takes = {i.name: ORT_TYPES.get(i.type, i.type) for i in session.get_inputs()}
    gives = {o.name: ORT_TYPES.get(o.type, o.type) for o in session.get_outputs()}
    told_in = {i.name: i.dtype for i in manifest.fed}
    told_in |= {s.input: s.dtype for s in manifest.states}
    told_in |= {name: spec.dtype for name, spec in manifest.constants.items()}
    told_out = {o.graph_name: o.dtype for o in manifest.outputs} | {s.output: s.dtype for s in manifest.states}
    problems = [f"input {n!r} of the graph is not in the manifest" for n in takes.keys() - told_in.keys()]
    for told, real, what in ((told_in, takes, "input"), (told_out, gives, "output")):
        for name, dtype in told.items():
            if name not in real:
                problems.append(f"{what} {name!r} is not in the graph, which has {sorted(real)}")
            elif real[name] != dtype:
                problems.append(f"{what} {name!r} is {dtype} in the manifest and {real[name]} in the graph")
    if problems:
        raise ManifestError(
            f"The manifest of {where} does not fit the graph: {'; '.join(sorted(problems))}.",
            fix="Write it again with `stepwell adopt`, or mend it by hand.",
        )
