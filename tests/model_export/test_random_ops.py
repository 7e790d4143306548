"""Chance is followed from random operators to every output that it reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import parser

from model_export.errors import ModelLoadError
from model_export.onnx_file import read_model
from model_export.random_ops import random_outputs
from tests import graphs


def reached(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.graph_from_text(text))
    return random_outputs(read_model(path))


@pytest.mark.parametrize(
    "node",
    [
        "RandomNormalLike (x)",
        "RandomUniformLike (x)",
        "Bernoulli (x)",
        "RandomNormal <shape = [2]> ()",
        "RandomUniform <shape = [2]> ()",
        "Multinomial (x)",
    ],
)
def test_each_random_operator_is_found(tmp_path: Path, node: str) -> None:
    found = reached(tmp_path, f"g (float[B,2] x) => (float[B,2] y, float[B,2] z) {{ y = {node}\n z = Neg (x) }}")

    assert list(found) == ["y"]
    assert found["y"].startswith(node.split(maxsplit=1)[0])


def test_chance_is_followed_through_other_nodes(tmp_path: Path) -> None:
    text = """
        g (float[B,2] x) => (float[B,2] y, float[B,2] z) {
            noise = RandomNormalLike (x)
            a = Add (x, noise)
            y = Neg (a)
            z = Neg (x)
        }"""

    assert list(reached(tmp_path, text)) == ["y"]


def test_chance_inside_a_branch_reaches_what_the_branch_gives(tmp_path: Path) -> None:
    text = """
        g (bool c, float[2] x) => (float[2] y, float[2] z) {
            y = If (c) <
                then_branch = t () => (float[2] a) { a = RandomNormalLike (x) },
                else_branch = e () => (float[2] b) { b = Identity (x) }
            >
            z = Neg (x)
        }"""

    assert list(reached(tmp_path, text)) == ["y"]


def test_chance_from_outside_is_followed_into_a_branch(tmp_path: Path) -> None:
    text = """
        g (bool c, float[2] x) => (float[2] y) {
            noise = RandomNormalLike (x)
            y = If (c) <
                then_branch = t () => (float[2] a) { a = Neg (noise) },
                else_branch = e () => (float[2] b) { b = Identity (x) }
            >
        }"""

    assert list(reached(tmp_path, text)) == ["y"]


def test_a_branch_beside_chance_is_not_blamed(tmp_path: Path) -> None:
    text = """
        g (bool c, float[2] x) => (float[2] y, float[2] noise) {
            noise = RandomNormalLike (x)
            y = If (c) <
                then_branch = t () => (float[2] a) { a = Neg (x) },
                else_branch = e () => (float[2] b) { b = Identity (x) }
            >
        }"""

    assert list(reached(tmp_path, text)) == ["noise"]


def test_chance_inside_a_function_of_the_model_is_found(tmp_path: Path) -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[2] x) => (float[2] y, float[2] z) { y = own.outer (x)  z = Neg (x) }
        <opset_import: ["": 17, "own": 1], domain: "own"> outer (a) => (b) { b = own.inner (a) }
        <opset_import: ["": 17], domain: "own"> inner (a) => (b) { b = RandomNormalLike (a) }
    """)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    assert list(random_outputs(read_model(path))) == ["y"]


def test_dropout_counts_where_it_can_be_switched_on(tmp_path: Path) -> None:
    text = """
        g (float[2] x, bool training) => (float[2] y, float[2] z) {
            half = Constant <value_float = 0.5> ()
            y = Dropout (x, half, training)
            z = Dropout (x, half)
        }"""

    assert list(reached(tmp_path, text)) == ["y"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelLoadError):
        random_outputs(read_model(path))
