"""Models are vetted in a separate process: one that crashes it, exceeds its memory or never finishes is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stepwell.models.artifacts import LoadModel
from stepwell.models.loading import model_loader
from stepwell.settings import Settings
from stepwell_export.runtime.errors import ManifestError, ModelLoadError
from stepwell_export.runtime.manifest import Manifest
from tests.api.running import running_service
from tests.graphs import Built, fold, graph_from_text, total, write_model, write_models
from tests.servers import Server


def loader(folder: Path | None = None, **settings: object) -> LoadModel:
    return model_loader(Settings.load(**settings), folder)


def _manifest() -> Manifest:
    return total()[1]


def endless() -> Built:
    """A running sum after a loop of 2**40 iterations."""
    graph = graph_from_text("""
        endless (float[B,2] x, float[B,2] s) => (float[B,2] y, float[B,2] s_next) {
            n = Constant <value = int64 {1099511627776}> ()
            go = Constant <value = bool {1}> ()
            zero = Sub (x, x)
            looped = Loop (n, go, zero) <body = b (int64 i, bool c, float[B,2] v) => (bool c_out, float[B,2] v_out) {
                c_out = Identity (c)
                v_out = Cos (v)
            }>
            both = Add (s, x)
            s_next = Add (both, looped)
            y = Identity (s_next)
        }""")
    return graph, _manifest()


def greedy() -> Built:
    """A running sum after a tensor of 2**35 floats, 128 GiB."""
    graph = graph_from_text("""
        greedy (float[B,2] x, float[B,2] s) => (float[B,2] y, float[B,2] s_next) {
            n = Constant <value = int64[1] {34359738368}> ()
            much = ConstantOfShape (n)
            axes = Constant <value = int64[1] {0}> ()
            summed = ReduceSum (much, axes)
            both = Add (s, x)
            s_next = Add (both, summed)
            y = Identity (s_next)
        }""")
    return graph, _manifest()


def test_a_valid_model_is_accepted(tmp_path: Path) -> None:
    file = write_model(tmp_path, "fold", fold)

    assert loader()(file).manifest.name == "fold"


def test_a_model_that_never_finishes_is_refused_after_a_timeout(tmp_path: Path) -> None:
    file = write_model(tmp_path, "endless", endless)
    began = time.monotonic()

    with pytest.raises(ModelLoadError, match=r"endless\.onnx was not loaded and run once within 2 s"):
        loader(model_probe_s=2)(file)
    assert time.monotonic() - began < 60


def test_a_model_that_exceeds_the_memory_limit_is_refused_and_this_process_survives(tmp_path: Path) -> None:
    file = write_model(tmp_path, "greedy", greedy)

    with pytest.raises(ModelLoadError, match="greedy"):
        loader()(file)


def test_an_error_in_the_vetting_process_is_reported_unchanged(tmp_path: Path) -> None:
    (tmp_path / "bare.onnx").write_bytes(total()[0])

    with pytest.raises(ModelLoadError, match="has no manifest"):
        loader()(tmp_path / "bare.onnx")
    with pytest.raises(ManifestError, match="has no manifest"):
        loader(model_probe_s=0)(tmp_path / "bare.onnx")


def test_an_acceptance_is_cached_for_the_next_start(tmp_path: Path) -> None:
    """The second vetting has no time for a process, and needs none."""
    file = write_model(tmp_path / "models", "fold", fold)
    loader(tmp_path / "verdicts")(file)

    assert loader(tmp_path / "verdicts", model_probe_s=1e-6)(file)


def test_a_changed_file_is_vetted_again(tmp_path: Path) -> None:
    file = write_model(tmp_path / "models", "fold", fold)
    loader(tmp_path / "verdicts")(file)
    write_model(tmp_path / "models", "fold", total)

    with pytest.raises(ModelLoadError, match="was not loaded"):
        loader(tmp_path / "verdicts", model_probe_s=1e-6)(file)


def test_a_rejection_is_cached_while_the_process_lives(tmp_path: Path) -> None:
    (tmp_path / "bare.onnx").write_bytes(total()[0])
    one = loader(tmp_path / "verdicts")
    for _ in range(2):
        with pytest.raises(ModelLoadError):
            one(tmp_path / "bare.onnx")

    assert [path.name for path in (tmp_path / "verdicts").iterdir()] == ["lock"]


def test_vetting_works_without_a_writable_cache_folder(tmp_path: Path) -> None:
    file = write_model(tmp_path, "fold", fold)

    assert loader(file / "no folder")(file)


def test_the_service_reports_a_model_that_it_does_not_accept(shared_redis: Server, tmp_path: Path) -> None:
    folder = write_models(tmp_path, fold)
    with running_service(shared_redis.url, folder, model_probe_s=20) as one:
        write_model(folder, "greedy", greedy)
        report = one.http.post("/v1/models/reload").json()

        assert report["loaded"] == []
        assert report["failed"][0].startswith("greedy.onnx: ")
        assert str(tmp_path) not in report["failed"][0]  # paths of the server are not revealed
        assert one.http.get("/v1/models/fold").status_code == 200
