"""The model of the conformance cases; `python -m tests.all_clients.model FOLDER` writes it into a model folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.graphs import Built, graph_from_text, manifest_of, write_model


def doubling() -> Built:
    """Double the state and add the input, so that lost, repeated and swapped steps are visible.

    `y = 2 * s + x`, `s' = y`; all are float32 of shape [1].
    """
    graph = graph_from_text("""
        doubling (float[B,1] x, float[B,1] s) => (float[B,1] y, float[B,1] s_next) {
            twice = Add (s, s)
            s_next = Add (twice, x)
            y = Identity (s_next)
        }""")
    return graph, manifest_of(
        name="doubling",
        inputs=[{"name": "x", "dtype": "float32", "shape": [1]}],
        states=[{"in": "s", "out": "s_next", "dtype": "float32", "shape": [1]}],
        outputs=[{"name": "y", "dtype": "float32", "shape": [1]}],
        feedback={"x": "y"},
    )


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), "doubling", doubling)
