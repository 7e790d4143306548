"""The way of one export: modules and functions of ours that `stepwell.export` of LSTM + Dense in Keras runs through.

    python -m benchmarks.export_trace [DIR]

A profile function counts what is called, modules that are imported on the way aside; and each `InferenceSession` that
is opened, with the function of ours that opens it. DIR is another checkout, whose exporter runs instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_UNNAMED = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
_EXPORT = """
import json, os, sys, threading
import keras, onnxruntime
import stepwell_export
from stepwell_export import graph_session
from stepwell_export.runtime import session
keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([layers.Input((None, 8)), layers.LSTM(64, return_sequences=True), layers.Dense(4)])
calls, sessions = set(), []
def is_ours(code):
    return "/stepwell_export/" in code.co_filename
class Session(onnxruntime.InferenceSession):
    def __init__(self, *args, **kwargs):
        frame = sys._getframe(1)
        while not is_ours(frame.f_code) or frame.f_code.co_filename in (session.__file__, graph_session.__file__):
            frame = frame.f_back
        sessions.append((frame.f_code.co_filename, frame.f_code.co_qualname))
        super().__init__(*args, **kwargs)
onnxruntime.InferenceSession = Session
def is_importing(frame):
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return frame is not None and is_ours(frame.f_code)
def trace(frame, event, arg):
    if event == "call" and is_ours(frame.f_code):
        call = frame.f_code.co_filename, frame.f_code.co_qualname
        if call not in calls and not is_importing(frame):
            calls.add(call)
threading.setprofile(trace)
sys.setprofile(trace)
stepwell_export.export(model, os.environ["TRACE_FOLDER"] + "/step.onnx")
sys.setprofile(None)
with open(os.environ["TRACE_FOLDER"] + "/calls.json", "w") as out:
    json.dump([sorted(calls), sessions], out)
"""


class Trace(NamedTuple):
    """What one export runs through.

    Attributes:
        functions: File and qualified name of each function of ours, without lambdas and comprehensions.
        sessions: The same of the function that opened each `InferenceSession`, in order.
    """

    functions: list[tuple[str, str]]
    sessions: list[tuple[str, str]]


def trace(tree: Path) -> Trace:
    """Return what the exporter of a checkout runs through for LSTM + Dense."""
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        code = ":".join(str(tree / part) for part in ("service", "model_export", "clients/python"))
        env = {k: v for k, v in os.environ.items() if not k.startswith("STEPWELL_")}
        env |= {"PYTHONPATH": code, "TRACE_FOLDER": folder, "KERAS_BACKEND": "jax"}
        subprocess.run([sys.executable, "-P", "-c", _EXPORT], check=True, cwd=folder, env=env)
        calls, sessions = json.loads(Path(folder, "calls.json").read_text())
    named = [(file, name) for file, name in calls if not name.endswith(_UNNAMED) and name != "<module>"]
    return Trace(*([(os.path.relpath(file, tree), name) for file, name in found] for found in (named, sessions)))


def main() -> None:
    """Print the functions by module, the sessions, and how many of each there are."""
    functions, sessions = trace(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
    modules = Counter(file for file, _ in functions)
    for file, count in sorted(modules.items()):
        print(f"{count:4} {file}")
    for file, name in sessions:
        print(f"session: {file}: {name}")
    print(f"{len(modules)} modules, {len(functions)} functions, {len(sessions)} sessions")


if __name__ == "__main__":
    main()
