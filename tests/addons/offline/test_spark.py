"""A real Spark in local mode predicts as the service does, and its states go on in the service."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_export.runtime.step_model import StepModel
from tests.addons.offline.recording import N_STREAMS, assert_states_go_on, expected, found, recording
from tests.api.running import running_service
from tests.graphs import fold, lstm, write_model
from tests.servers import Server

if find_spec("pyspark") is None or shutil.which("java") is None:
    pytest.skip("pyspark or java is not installed (STEPWELL_EXTRAS=spark, openjdk)", allow_module_level=True)

import pandas as pd
from pyspark.sql import SparkSession

from stepwell.addons.offline import spark

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    built = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config(
            "spark.sql.streaming.stateStore.providerClass",
            "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider",
        )
        .getOrCreate()
    )
    yield built
    built.stop()


def test_a_table_is_predicted_as_the_service_would(session: Any, tmp_path: Path) -> None:
    rows = recording()

    predicted = spark.predictions(
        session.createDataFrame(rows), write_model(tmp_path, "fold", fold), stream="pump", time="t"
    )

    assert found(predicted.toPandas()) == expected(rows)


def test_live_rows_are_predicted_once_with_the_state_in_the_checkpoint(session: Any, tmp_path: Path) -> None:
    """Files arrive in two runs of a query; the second one goes on from the first one's checkpoint."""
    model, source = write_model(tmp_path, "fold", fold), tmp_path / "source"
    source.mkdir()
    rows = recording()

    def run(part: Any, name: str) -> None:
        part.to_json(source / f"{name}.json", orient="records", lines=True)
        table = session.readStream.schema("pump string, t bigint, x bigint").json(str(source))
        query = (
            spark.predictions(table, model, stream="pump", time="t")
            .writeStream.format("parquet")
            .option("path", str(tmp_path / "out"))
            .option("checkpointLocation", str(tmp_path / "checkpoint"))
            .trigger(availableNow=True)
            .start()
        )
        assert query.awaitTermination(300)

    run(rows[rows["t"] < 17], "first")
    run(rows[rows["t"] >= 17], "second")

    assert found(session.read.parquet(str(tmp_path / "out")).toPandas()) == expected(rows)


def test_the_states_of_a_backfill_go_on_in_the_service(session: Any, redis_server: Server, tmp_path: Path) -> None:
    models, rows = tmp_path / "models", recording()
    file, savepoint = write_model(models, "fold", fold), tmp_path / "states.savepoint"
    table = session.createDataFrame(rows)

    count = spark.save_states(spark.states(table, file, stream="pump", time="t"), savepoint, file)
    assert count == N_STREAMS
    with running_service(redis_server.url, models) as service:
        assert_states_go_on(service, savepoint, rows)


def test_a_model_of_many_numbers_gives_arrays(session: Any, tmp_path: Path) -> None:
    file, xs = write_model(tmp_path, "lstm", lstm), np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    rows = pd.DataFrame(xs, columns=list("abcd")).assign(t=range(30), s="one")

    predicted = spark.predictions(
        session.createDataFrame(rows), file, stream="s", time="t", inputs={"x": list("abcd")}
    ).toPandas()

    graph = StepModel(file)
    outputs, _ = graph.chunk({"x": xs[None]}, graph.initial_states(1))
    [name] = outputs
    np.testing.assert_allclose(np.stack(predicted.sort_values("step")[name]), outputs[name][0], rtol=1e-6)
