"""The plugin `stepwell` of MLflow deployments: MLflow models in a running service, and new versions as releases.

MLflow finds `target_help`, `run_local` and the subclass of its `BaseDeploymentClient` here by the entry point
`stepwell`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from mlflow.deployments import BaseDeploymentClient

from stepwell.addons.mlflow.flavor import FLAVOR, MlflowModelError, model_file
from stepwell.addons.text_values import stream_id_of
from stepwell.commands.service_calls import HttpApi, model_path
from stepwell_client import Client
from stepwell_export.runtime.files import write_atomically
from stepwell_export.runtime.manifest import NAME

_RELEASE: Final = {"mode": str, "percent": float, "take": str, "warm_steps": int, "why": str}
_STREAM: Final = "stream"


def target_help() -> str:
    """Return the help of the deployment target, for `mlflow deployments help -t stepwell`."""
    return """Deploys models to a running Stepwell service: -t stepwell:http://HOST:PORT

An API key with the scope `models` is read from STEPWELL_KEY. The plugin writes the model's file to the service's models
folder, which it has to reach: -C models=FOLDER, else STEPWELL_MODELS.

create   adds the model as version 1. The model has the flavor `stepwell`: log it by stepwell.mlflow.log_model.
update   adds the next version and releases it. By default all streams go on with it at their next step, and the release
         is promoted. -C mode=shadow, ramp or switch and -C percent=N start a trial instead, which you end by
         `stepwell release promote` or `abort`. -C take=keep, translate or reset and -C warm_steps=N set what becomes of
         the streams' states.
delete   removes the model's files; streams that live go on with the versions that the store keeps.
predict  steps the streams in the column `stream` of a table, one timestep for each row; the other columns are the
         model's inputs, by their labels or as NAME[0], NAME[1]."""


def run_local(target: str, name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> None:
    """Refuse: a service is started by `stepwell serve`.

    Raises:
        MlflowModelError: Always.
    """
    raise MlflowModelError(
        f"The target {target!r} runs no service by itself.",
        fix="Start one with `stepwell serve --models FOLDER`, then use `mlflow deployments create`.",
    )


class StepwellDeployments(BaseDeploymentClient):
    """MLflow's deployments in one Stepwell service; a deployment is a model."""

    def __init__(self, target_uri: str) -> None:
        """Create a client.

        Args:
            target_uri: `stepwell:http://HOST:PORT`.
        """
        super().__init__(target_uri)
        self._url = target_uri.removeprefix(f"{FLAVOR}:") if target_uri != FLAVOR else "http://127.0.0.1:8000"
        self._key = os.environ.get("STEPWELL_KEY")

    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> dict[str, Any]:
        """Serve a model under a name.

        Raises:
            StepwellError: There is such a model, the file cannot be written, or the service rejects it.
        """
        _check(name, flavor, endpoint)
        file, folder = model_file(model_uri), _models_folder(config)
        with self._api() as api:
            if name in self._names(api):
                raise MlflowModelError(f"There is a model {name} already.", fix="Use `mlflow deployments update`.")
            self._add(api, name, 1, file, folder)
            return {"name": name, "flavor": FLAVOR, **_described(api.get(model_path(name)))}

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Any = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Serve a new version of a model, and release it to the streams.

        Raises:
            StepwellError: There is no such model, an option is not valid, or the service refuses the release.
        """
        _check(name, flavor, endpoint)
        options = _release_options(config)
        with self._api() as api:
            if model_uri is not None:
                self._add_next(api, name, model_file(model_uri), _models_folder(config))
                self._release(api, name, {"why": f"MLflow: {model_uri}", **options})
            elif options := {each: value for each, value in options.items() if each != "why"}:
                release = api.get(f"{model_path(name)}/release")
                trial = {each: release[each] for each in ("candidate", "mode", "percent")} | options
                api.call("PUT", f"{model_path(name)}/release", json=trial)
            return {"name": name, "flavor": FLAVOR, **_described(api.get(model_path(name)))}

    def delete_deployment(self, name: str, config: Any = None, endpoint: str | None = None) -> None:
        """Remove a model's files, and let the service stop serving it; nothing happens if there is no such model."""
        _check(name, None, endpoint)
        folder = _models_folder(config)
        with self._api() as api:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (folder / f"{name}.onnx").unlink(missing_ok=True)
            api.call("POST", "/v1/models/reload")

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return the models of the service."""
        _check(None, None, endpoint)
        with self._api() as api:
            return [{"name": each["name"], **_described(each)} for each in api.get("/v1/models")["models"]]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return a model: its versions, and the release that moves streams between them.

        Raises:
            StepwellError: There is no such model.
        """
        _check(name, None, endpoint)
        with self._api() as api:
            described = {"name": name, **_described(api.get(model_path(name)))}
            return {**described, "release": api.get(f"{model_path(name)}/release")}

    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Step streams by the rows of a table, each by one timestep, and return a row of predictions for each.

        Args:
            deployment_name: The model.
            inputs: A pandas DataFrame with a column `stream`, and the columns of the model's inputs.
            endpoint: Not used.

        Returns:
            A DataFrame with the columns `stream`, `step`, and `OUTPUT[LABEL]` for each number.

        Raises:
            ServiceError: A stream's id is no text and no integer; nothing was applied.
            StepwellError: A column is missing, or the service rejects a step; rows before it were applied.
        """
        import pandas as pd

        from stepwell_client.input_columns import prediction_columns

        _check(deployment_name, None, endpoint)
        if _STREAM not in getattr(inputs, "columns", ()):
            raise MlflowModelError(
                f"The inputs have no column {_STREAM!r}; each row is a timestep of the stream that it names.",
                fix=f"Add a column {_STREAM!r} with the id of each row's stream.",
            )
        by_number = inputs.reset_index(drop=True)  # two rows may have one label
        groups = list(by_number.groupby(_STREAM, sort=False, dropna=False, observed=True))
        names = [stream_id_of(name.item() if hasattr(name, "item") else name) for name, _ in groups]
        found: list[tuple[Any, ...]] = [()] * len(inputs)
        with Client(self._url, self._key) as client:
            model = client.model(str(deployment_name))
            outputs = model.describe().outputs
            for name, (_, rows) in zip(names, groups, strict=True):
                stream = model.stream(name)
                stream.resume()
                for row, result in zip(rows.index, stream.replay(rows.drop(columns=_STREAM)), strict=True):
                    numbers = [number for each in outputs for number in result.outputs[each.name].ravel().tolist()]
                    found[row] = (name, result.step, *numbers)
        columns = [_STREAM, "step", *chain(*prediction_columns(outputs))]
        return pd.DataFrame(found, index=inputs.index, columns=columns)

    def _api(self) -> HttpApi:
        return HttpApi(self._url, self._key)

    @staticmethod
    def _names(api: HttpApi) -> list[str]:
        return [each["name"] for each in api.get("/v1/models")["models"]]

    def _add_next(self, api: HttpApi, name: str, file: Path, folder: Path) -> None:
        """Add a model's next version, which is not current yet; nothing happens if the newest one has this file."""
        described = api.get(model_path(name))
        newest = max(described["versions"])
        path = folder / name / str(newest) / "model.onnx"
        if path.is_file() and _digest(path.read_bytes()) == _digest(file.read_bytes()):
            return
        api.call("PUT", f"{model_path(name)}/release", json={"current": described["version"]})  # else the newest one is
        self._add(api, name, newest + 1, file, folder)

    @staticmethod
    def _release(api: HttpApi, name: str, options: dict[str, Any]) -> None:
        """Release a model's newest version: start a trial if a mode is given, else move all streams to it."""
        release, newest = f"{model_path(name)}/release", max(api.get(model_path(name))["versions"])
        if newest == api.get(release)["current"]:
            return
        why = options.pop("why")
        api.call("PUT", release, json={"candidate": newest, "mode": "switch", "percent": 100, **options})
        if "mode" not in options:
            api.call("POST", f"{release}/promote", json={"why": why})

    @staticmethod
    def _add(api: HttpApi, name: str, version: int, file: Path, folder: Path) -> None:
        """Write a version to the models folder, and have the service load it.

        Raises:
            MlflowModelError: The service does not see the file, or rejects it.
        """
        target = folder / name / str(version) / "model.onnx"
        write_atomically(target, file.read_bytes())
        report = api.call("POST", "/v1/models/reload")
        served = {each["name"]: each["versions"] for each in api.get("/v1/models")["models"]}
        if version in served.get(name, []):
            return
        shutil.rmtree(target.parent)
        failed = "; ".join(str(each) for each in report["failed"] if name in str(each))
        raise MlflowModelError(
            f"The service does not load {target}: {failed or 'it does not see the file'}.",
            fix="Name the folder that the service reads, with -C models=FOLDER." if not failed else "Log it again.",
        )


def _check(name: str | None, flavor: str | None, endpoint: str | None) -> None:
    if endpoint is not None:
        raise MlflowModelError("A Stepwell service has no endpoints.", fix="Leave --endpoint out.")
    if flavor not in (None, FLAVOR):
        raise MlflowModelError(f"The flavor {flavor!r} cannot be deployed; expected {FLAVOR!r}.", fix="Leave it out.")
    if name is not None and not NAME.fullmatch(name):
        raise MlflowModelError(f"{name!r} is no model's name; expected {NAME.pattern}.", fix="Give another --name.")


def _models_folder(config: Mapping[str, Any] | None) -> Path:
    folder = (config or {}).get("models") or os.environ.get("STEPWELL_MODELS")
    if not folder:
        raise MlflowModelError(
            "The service's models folder is not known.", fix="Give it: -C models=FOLDER, or set STEPWELL_MODELS."
        )
    if not Path(folder).is_dir():
        raise MlflowModelError(f"{folder} is no folder; expected the service's models folder.", fix="Check -C models.")
    return Path(folder)


def _release_options(config: Mapping[str, Any] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in (config or {}).items():
        if name == "models":
            continue
        if name not in _RELEASE:
            raise MlflowModelError(
                f"{name!r} is no option; expected models, {', '.join(_RELEASE)}.", fix="Correct it: -C NAME=VALUE."
            )
        try:
            options[name] = _RELEASE[name](value)
        except ValueError:
            raise MlflowModelError(f"{name}={value}: expected a number.", fix="Correct it: -C NAME=VALUE.") from None
    return options


def _described(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model[name] for name in ("version", "versions", "inputs", "outputs", "bytes_per_stream")}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()
