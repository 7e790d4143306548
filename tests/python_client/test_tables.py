"""The columns of a table are taken by name, or refused; never by the order that they happen to have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stepwell_client import AsyncClient, Client, ClientError
from stepwell_client.protocol.decoding import TensorInfo
from stepwell_client.tables import columns_by_input
from tests.graphs import lstm, two_inputs, write_models
from tests.python_client.transports import engine_in_process

LABELLED = TensorInfo("motion", "float32", [3], ["x", "y", "z"])
PLAIN = TensorInfo("level", "float32", [3])
SINGLE = TensorInfo("flow", "float32", [])
INDEXED = ["motion[0]", "motion[1]", "motion[2]"]
CHOSEN = {"level": ["c", "b", "a"]}


TAKEN: list[tuple[list[TensorInfo], Any, Any, Any]] = [
    ([LABELLED], ["z", "t", "x", "y"], None, {"motion": ["x", "y", "z"]}),
    ([LABELLED], INDEXED[::-1], None, {"motion": INDEXED}),
    ([LABELLED], ["a", "b", "c"], ["c", "a", "b"], {"motion": ["c", "a", "b"]}),
    ([PLAIN], [0, 1, 2], None, {"level": [0, 1, 2]}),
    ([SINGLE], ["t", "flow"], None, {"flow": ["flow"]}),
    ([LABELLED, SINGLE], ["flow", "z", "y", "x"], None, {"motion": ["x", "y", "z"], "flow": ["flow"]}),
    ([PLAIN, SINGLE], ["a", "b", "c", "flow"], CHOSEN, CHOSEN | {"flow": ["flow"]}),
]
LEVEL = r"table has a, b, c; input 'level' is made of level\[0\], level\[1\], level\[2\]"
REFUSED: list[tuple[list[TensorInfo], Any, Any, str]] = [
    ([LABELLED], ["a", "b", "c"], None, "table has a, b, c; input 'motion' is made of x, y, z or motion"),
    ([PLAIN], ["a", "b", "c"], None, LEVEL),
    ([PLAIN], [0, 1, 2, 3], None, "The table has 0, 1, 2, 3"),
    ([LABELLED], ["x", "y", "z"], ["x", "y"], "has 3 numbers and was given 2 columns"),
    ([LABELLED], ["x", "y"], ["x", "y", "z"], "The table has no column z; it has x, y"),
    ([LABELLED, SINGLE], ["a"], ["a"], "One list of columns is given for the inputs motion, flow"),
    ([LABELLED], ["a"], {"other": ["a"]}, "Columns are named for other"),
]


def test_columns_are_taken_by_name_and_what_is_not_clear_is_refused() -> None:
    for inputs, available, chosen, expected in TAKEN:
        assert columns_by_input(inputs, available, chosen) == expected
    for inputs, available, chosen, words in REFUSED:
        with pytest.raises(ClientError, match=words) as caught:
            columns_by_input(inputs, available, chosen)

        assert caught.value.code == "bad_input"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with engine_in_process(write_models(tmp_path_factory.mktemp("models"), lstm, two_inputs)) as engine:
        yield engine.url


async def test_both_clients_replay_a_table_by_names(url: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    frame = pandas.DataFrame(rows, columns=[f"x[{n}]" for n in range(4)])[[f"x[{n}]" for n in (3, 1, 0, 2)]]
    with Client(url) as client:
        expected = client.model("lstm").stream("whole").steps(rows).output
        found = [answer.output for answer in client.model("lstm").stream("sync").replay(frame)]
        with pytest.raises(ClientError, match="The table has a, b, c, d"):
            next(client.model("lstm").stream("sync").replay(frame.set_axis(list("abcd"), axis=1)))
    async with AsyncClient(url) as aclient:
        also = [answer.output async for answer in aclient.model("lstm").stream("async").replay(frame)]

    np.testing.assert_allclose([found, also], [expected] * 2, atol=1e-6)


def test_a_series_is_a_table_of_one_column(url: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    with Client(url) as client:
        handle = client.model("lstm").stream("series")
        with pytest.raises(
            ClientError, match=r"table has temperature; input 'x' is made of x\[0\], x\[1\], x\[2\], x\[3\]"
        ):
            next(handle.replay(pandas.Series([1.0, 2.0], name="temperature")))


def test_an_error_of_a_row_names_the_row(url: str) -> None:
    with Client(url) as client, pytest.raises(ClientError) as caught:
        list(client.model("lstm").stream("nan").replay([[0.0] * 4, [0.0, 0.0, np.nan, 0.0]]))

    assert caught.value.code == "non_finite"
    assert caught.value.__notes__ == ["This is row 1 of the recording, counted from 0."]


def test_a_table_has_the_columns_of_several_inputs(url: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    frame = pandas.DataFrame({"b": [3, 4], "left": [1, 10], "right": [2, 20]})
    with Client(url) as client:
        handle = client.model("two_inputs").stream("a")
        answers = list(handle.replay(frame, columns={"a": ["left", "right"]}))

    assert [answer.outputs["last"].tolist() for answer in answers] == [3, 4]
    assert [answer.outputs["total"].tolist() for answer in answers] == [[4, 5], [18, 29]]
