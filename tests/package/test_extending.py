"""A package from outside the tree, examples/addon, adds to the installed Stepwell in every way that there is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import httpx2
import pytest

from tests.graphs import fold_reference
from tests.package.environment import ROOT, SOURCES, Environment, build, install, serve
from tests.processes import ServiceProcess
from tests.servers import Server

EXAMPLE = ROOT / "examples" / "addon"
MAKE_LEAKY = "import keras, stepwell_fleet.leaky as own; x = keras.Input((None, 2)); "
MAKE_LEAKY += "keras.Model(x, keras.layers.Dense(1)(own.Leaky()(x))).save('leaky.keras')"

pytest.importorskip("hatchling", reason="hatchling is not installed; the extra dev has it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    wheels = [build("wheel", source, tmp_path_factory.mktemp("wheel")) for source in (*SOURCES.values(), EXAMPLE)]
    return install(tmp_path_factory.mktemp("venv"), *wheels)


@pytest.fixture(scope="module")
def serving(extended: Environment) -> Iterator[ServiceProcess]:
    with serve(extended, "--fleet-site", "mill") as one:
        yield one


def test_its_own_tests_pass(extended: Environment) -> None:
    """The laws of its broker, and an export with its stage, which is found in `stepwell.stages`."""
    pytest.importorskip("keras", reason="Keras is not installed")
    shutil.copytree(EXAMPLE / "tests", extended.folder / "tests")
    done = extended.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", KERAS_BACKEND="jax")

    assert done.returncode == 0, done.stdout


def test_a_file_with_its_layer_is_exported_by_its_step_rule(extended: Environment) -> None:
    pytest.importorskip("keras", reason="Keras is not installed")
    made = extended.run("python", "-c", MAKE_LEAKY, KERAS_BACKEND="jax")
    exported = extended.run("stepwell", "export", "leaky.keras", "-o", "leaky/leaky.onnx", KERAS_BACKEND="jax")

    assert (made.returncode, exported.returncode) == (0, 0), made.stderr + exported.stderr


def test_its_route_is_served_with_its_setting(serving: ServiceProcess) -> None:
    found = httpx2.get(f"{serving.url}/fleet", trust_env=False, timeout=30).json()

    assert (found["models"], found["problems"], found["site"]) == (["fold"], [], "mill")


def test_timesteps_are_read_from_its_broker_and_predictions_written_to_it(
    extended: Environment, serving: ServiceProcess
) -> None:
    (extended.folder / "in").mkdir()
    (extended.folder / "in" / "1.jsonl").write_text('{"stream": "p1", "x": [7]}\n{"stream": "p1", "x": [8]}\n')
    words = ["--once", "--model", "fold", "--stream", "stream", "--url", serving.url]
    done = extended.run(
        *("stepwell", "connect", f"spool://{extended.folder}/in", *words, "--to", f"spool://{extended.folder}/out")
    )

    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (extended.folder / "out" / "1.jsonl").read_text().splitlines()]
    assert [message["outputs"]["y"] for message in written] == [fold_reference([7]), fold_reference([7, 8])[-1:]]


def test_its_command_lists_what_stands_behind(extended: Environment, serving: ServiceProcess) -> None:
    for stream, n_steps in (("ahead", 3), ("late", 1)):
        body = {"inputs": {"x": [[7]] * n_steps}}
        httpx2.post(f"{serving.url}/v1/models/fold/streams/{stream}/steps", json=body, trust_env=False, timeout=30)

    listed = extended.run("stepwell", "fleet", "fold", "--behind", "2", "--url", serving.url)

    assert (listed.returncode, listed.stdout) == (1, "late is at step 1, 2 behind\n"), listed.stderr
    assert "List streams that stand behind the others." in extended.run("stepwell", "--help").stdout
    assert "--behind" in extended.run("stepwell", "fleet", "--help").stdout


def test_a_store_is_opened_by_its_scheme(extended: Environment, shared_redis: Server) -> None:
    (extended.folder / "redis-url").write_text(f"{shared_redis.url}\n")
    done = extended.run("stepwell", "backup", "all.rdb", "--redis", f"redis+file://{extended.folder}/redis-url")

    assert done.returncode == 0, done.stderr
    assert (extended.folder / "all.rdb").read_bytes()[:5] in (b"REDIS", b"VALKE")
