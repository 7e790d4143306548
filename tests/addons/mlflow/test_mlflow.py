"""MLflow with a real tracking store: models are logged, deployed to a running service, updated and removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepwell
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.step_model import StepModel
from tests.api.running import Service, running_service
from tests.graphs import fold, fold_reference, lstm, write_model
from tests.servers import Server

pytestmark = [  # each process of the tests would import MLflow, which takes seconds, if this file did
    pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed (STEPWELL_EXTRAS=mlflow)")
    for name in ("mlflow", "pandas")
]
OLD, NEW = 1_000_003, 31


@pytest.fixture(autouse=True)
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A tracking store and a model registry in files."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = (tmp_path / "tracking").as_uri()
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture
def service(redis_server: Server, tmp_path: Path) -> Iterator[Service]:
    models = tmp_path / "models"
    models.mkdir()
    with running_service(redis_server.url, models) as running:
        yield running


@pytest.fixture
def deployments(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow.deployments import get_deploy_client

    monkeypatch.setenv("STEPWELL_MODELS", str(tmp_path / "models"))
    return get_deploy_client(f"stepwell:http://127.0.0.1:{service.port}")


def log_fold(folder: Path, factor: int, *, registered: str | None = "pump") -> Any:
    import mlflow

    file = write_model(folder, f"fold{factor}", lambda: fold(factor))
    with mlflow.start_run():
        return stepwell.mlflow.log_model(file, "model", registered_model_name=registered)


def table(streams: str | list[Any], xs: list[int]) -> Any:
    import pandas as pd

    return pd.DataFrame({"x": xs, "stream": streams})


def test_a_logged_model_is_a_verified_step_graph_with_its_signature(tmp_path: Path) -> None:
    import mlflow

    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(4, return_sequences=True)])

    with mlflow.start_run():
        logged = stepwell.mlflow.log_model(model, "wear", labels={})

    [(_, flavor)] = logged.flavors.items()
    assert (flavor["model_name"], flavor["verified"]["against"].split()[0]) == ("model", "keras")
    assert [each.shape for each in logged.signature.inputs.inputs] == [(-1, 3)]
    loaded = stepwell.mlflow.load_model(logged.model_uri)
    assert isinstance(loaded, StepModel)
    assert [tuple(state.shape) for state in loaded.manifest.states] == [(4,), (4,)]


def test_an_alias_is_deployed_and_a_stream_goes_on_with_the_version_to_which_it_is_moved(
    tmp_path: Path, tracking: Any, deployments: Any
) -> None:
    """The whole way: log, register, create, predict, log again, move the alias, update, predict."""
    log_fold(tmp_path, OLD)
    tracking.set_registered_model_alias("pump", "champion", 1)
    created = deployments.create_deployment("pump", "models:/pump@champion")
    before = deployments.predict("pump", table("a", [5, 6]))

    log_fold(tmp_path, NEW)
    tracking.set_registered_model_alias("pump", "champion", 2)
    updated = deployments.update_deployment("pump", "models:/pump@champion")
    after = deployments.predict("pump", table("a", [7]))

    state = fold_reference([5, 6], factor=OLD)
    assert (created["version"], updated["version"], updated["versions"]) == (1, 2, [1, 2])
    assert before["y[0]"].tolist() == state
    assert after[["stream", "step", "y[0]"]].values.tolist() == [
        ["a", 3, *fold_reference([7], start=state[-1], factor=NEW)]
    ]
    release = deployments.get_deployment("pump")["release"]
    assert (release["current"], release["ended"]["how"]) == (2, "promoted")
    assert release["ended"]["why"] == "MLflow: models:/pump@champion"


def test_an_update_with_a_mode_starts_a_trial_that_is_ended_by_hand(
    tmp_path: Path, service: Service, deployments: Any
) -> None:
    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)
    deployments.update_deployment(
        "pump", log_fold(tmp_path, NEW).model_uri, config={"mode": "shadow", "percent": "100"}
    )
    answered = deployments.predict("pump", table("a", [5]))

    release = deployments.get_deployment("pump")["release"]
    assert (release["current"], release["candidate"], release["mode"]) == (1, 2, "shadow")
    assert answered["y[0]"].tolist() == fold_reference([5], factor=OLD)

    deployments.update_deployment("pump", config={"mode": "ramp", "percent": "50"})
    assert deployments.get_deployment("pump")["release"]["percent"] == 50


def test_the_same_file_again_is_no_new_version(tmp_path: Path, deployments: Any) -> None:
    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)

    updated = deployments.update_deployment("pump", log_fold(tmp_path, OLD).model_uri)

    assert updated["versions"] == [1]


def test_rows_of_many_streams_come_back_in_their_order(tmp_path: Path, deployments: Any) -> None:
    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)
    rows = table(["a", "b", "a", "b"], [1, 2, 3, 4]).set_axis([9, 8, 7, 6])

    answered = deployments.predict("pump", rows)

    (a1, a2), (b1, b2) = fold_reference([1, 3], factor=OLD), fold_reference([2, 4], factor=OLD)
    assert answered["y[0]"].tolist() == [a1, b1, a2, b2]
    assert answered.index.tolist() == [9, 8, 7, 6]


def test_rows_with_one_label_have_their_own_predictions(tmp_path: Path, deployments: Any) -> None:
    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)
    rows = table([7, 7, "0042", 42], [1, 2, 3, 4]).set_axis([0, 0, 0, 0])

    answered = deployments.predict("pump", rows)

    one, two = fold_reference([1, 2], factor=OLD)
    assert answered["y[0]"].tolist() == [one, two, *(fold_reference([x], factor=OLD)[0] for x in (3, 4))]
    assert answered["stream"].tolist() == ["7", "7", "0042", "42"]


def test_a_stream_that_is_no_id_is_named_and_nothing_is_applied(tmp_path: Path, deployments: Any) -> None:
    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)

    for name in (float("nan"), 42.0, None, "no id"):
        with pytest.raises(StepwellError, match="The stream id is"):
            deployments.predict("pump", table(["s", name], [1, 2]))

    assert deployments.predict("pump", table(["s"], [1]))["step"].tolist() == [1]


def test_a_model_that_is_deleted_is_served_no_more(tmp_path: Path, deployments: Any) -> None:
    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)
    assert [each["name"] for each in deployments.list_deployments()] == ["pump"]

    deployments.delete_deployment("pump")
    deployments.delete_deployment("pump")  # idempotent

    assert deployments.list_deployments() == []


def test_the_program_of_mlflow_deploys_too(tmp_path: Path, service: Service, deployments: Any) -> None:
    from click.testing import CliRunner
    from mlflow.deployments.cli import commands

    def run(*words: str) -> str:
        done = CliRunner().invoke(commands, [words[0], "-t", deployments.target_uri, *words[1:]])
        assert done.exit_code == 0, done.output
        return str(done.output)

    uri = log_fold(tmp_path, OLD).model_uri
    (tmp_path / "rows.json").write_text(json.dumps([{"stream": "s", "x": 4}]))

    run("create", "--name", "pump", "-m", uri, "-C", f"models={tmp_path / 'models'}")
    predicted = run("predict", "--name", "pump", "-I", str(tmp_path / "rows.json"))

    assert json.loads(predicted)["y[0]"] == {"0": fold_reference([4], factor=OLD)[0]}
    assert "pump" in run("list")


def test_what_cannot_be_done_is_said(tmp_path: Path, deployments: Any) -> None:
    uri = log_fold(tmp_path, OLD, registered=None).model_uri
    create, update = deployments.create_deployment, deployments.update_deployment
    calls: dict[str, Callable[[], object]] = {
        "is no model's name": lambda: create("no/name", uri),
        "The flavor 'onnx' cannot be deployed": lambda: create("p", uri, flavor="onnx"),
        "has no endpoints": lambda: create("p", uri, endpoint="e"),
        "is no folder": lambda: create("p", uri, config={"models": "/absent"}),
        "'speed' is no option": lambda: update("p", uri, config={"speed": 1}),
        "expected a number": lambda: update("p", uri, config={"percent": "half"}),
        "no column 'stream'": lambda: deployments.predict("p", table("s", [1])[["x"]]),
    }

    for words, call in calls.items():
        with pytest.raises(StepwellError, match=words):
            call()


def test_a_folder_that_the_service_does_not_read_is_found_out(tmp_path: Path, deployments: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()

    with pytest.raises(StepwellError, match="does not see the file"):
        deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri, config={"models": str(other)})

    assert not list(other.rglob("*.onnx"))


def test_a_version_that_cannot_keep_the_states_is_refused_and_streams_stay(tmp_path: Path, deployments: Any) -> None:
    import mlflow

    deployments.create_deployment("pump", log_fold(tmp_path, OLD).model_uri)
    with mlflow.start_run():
        other = stepwell.mlflow.log_model(write_model(tmp_path, "lstm", lstm), "model")

    with pytest.raises(StepwellError, match="inputs"):
        deployments.update_deployment("pump", other.model_uri)

    assert deployments.predict("pump", table("a", [5]))["y[0]"].tolist() == fold_reference([5], factor=OLD)


def test_a_model_without_the_flavor_is_refused(tmp_path: Path) -> None:
    import mlflow

    description = mlflow.models.Model()
    description.add_flavor("other", data="x")
    (tmp_path / "folder").mkdir()
    description.save(str(tmp_path / "folder" / "MLmodel"))

    with pytest.raises(StepwellError, match="has the flavors other; expected 'stepwell'"):
        stepwell.mlflow.load_model(str(tmp_path / "folder"))


def test_a_saved_model_runs_as_the_original(tmp_path: Path) -> None:
    stepwell.mlflow.save_model(write_model(tmp_path, "fold", fold), tmp_path / "saved")

    loaded = stepwell.mlflow.load_model(str(tmp_path / "saved"))

    outputs, _ = loaded.step({"x": np.array([[3]])}, loaded.initial_states(1))
    assert outputs["y"].tolist() == [fold_reference([3])]
