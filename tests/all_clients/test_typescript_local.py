"""`@stepwell/client/local`: models on onnxruntime in Node and Chromium, and streams that move to a service and back."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell import Client, LocalModel
from stepwell_export.runtime.manifest import OutputSpec
from tests.addons.dashboard.browser import browser, chromium
from tests.addons.local.test_local_model import MODELS, rows
from tests.all_clients.kit import FILE, KIT
from tests.all_clients.test_typescript import LOCAL
from tests.exactly_once.test_learned import timesteps, write_learning_model
from tests.graphs import Built, fold, fold_reference, write_models
from tests.processes import ServiceProcess, service_process

MAX_COMPRESSED_BYTES = 10_500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), *MODELS)


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with service_process(folder, tmp_path_factory.mktemp("service")) as running:
        yield running


def run(installed_runtime: Path, node: list[str], code: str, given: object = None) -> Any:
    """Run JavaScript with `given`, `LocalModel`, `LocalStream` and `ort`; return what its `return` has."""
    program = installed_runtime / "program.mjs"
    program.write_text(f"""
        import {{ readFile }} from "node:fs/promises";
        import * as ort from "onnxruntime-web";
        import {{ Client, StepwellError }} from "@stepwell/client";
        import {{ LocalModel, LocalStream }} from "@stepwell/client/local";
        import {{ parse, stringify }} from "./node_modules/@stepwell/client/src/formats.js";
        const given = parse({json.dumps(json.dumps(given))});
        const load = async (path) => LocalModel.load(await readFile(path), {{ ort }});
        const found = await (async () => {{ {code} }})();
        console.log(stringify(found ?? null)); // it may have integers beyond 2^53
        process.exit();
    """)
    done = subprocess.run([*node, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -------------------------------------------------------------------- Node


def test_a_local_model_behaves_as_the_cases_expect(installed_runtime: Path, node: list[str], folder: Path) -> None:
    program = installed_runtime / "node_modules" / "@stepwell/client" / "conformance-local.mjs"
    command = [*node, str(program), str(FILE), str(folder / f"{KIT['model']}.onnx"), "onnxruntime-web"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(found) == len(KIT["local"]), done.stderr
    assert [one for one in found if one["error"]] == []


def test_a_stream_in_node_equals_one_in_python_and_goes_on_there(
    installed_runtime: Path, node: list[str], folder: Path
) -> None:
    given = {}
    for build in MODELS:
        model = LocalModel.load(folder / f"{build.__name__}.onnx")
        xs = [{name: array.tolist() for name, array in x.items()} for x in rows(model, 5)]
        given[build.__name__] = {"file": str(folder / f"{build.__name__}.onnx"), "xs": xs}
    code = """
        const found = {};
        for (const [name, { file, xs }] of Object.entries(given)) {
          const stream = (await load(file)).stream();
          const outputs = [];
          for (const x of xs) outputs.push((await stream.step(x)).outputs);
          found[name] = { outputs, state: await stream.state() };
        }
        return found;
    """
    for name, found in run(installed_runtime, node, code, given).items():
        model = LocalModel.load(folder / f"{name}.onnx")
        stream, xs = model.stream(), rows(model, 6)
        for x, outputs in zip(xs, found["outputs"], strict=False):
            for output, array in stream.step(x).outputs.items():
                np.testing.assert_allclose(outputs[output], array, atol=1e-5, err_msg=name)

        moved, tolerance = model.stream(found["state"]["state"]), 1e-3 if "half" in name else 1e-5
        for output, array in stream.step(xs[5]).outputs.items():
            np.testing.assert_allclose(moved.step(xs[5]).outputs[output], array, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_a_model_with_learning_stages_learns_in_node(installed_runtime: Path, node: list[str], tmp_path: Path) -> None:
    learning, xs = write_learning_model(tmp_path), timesteps(12)
    code = """
        const stream = (await load(given.file)).stream();
        const outputs = [];
        for (const x of given.xs) outputs.push((await stream.step(x)).outputs);
        return { outputs, state: await stream.state() };
    """
    sent = [[None if np.isnan(value) else float(value) for value in x] for x in xs]
    found = run(installed_runtime, node, code, {"file": str(learning / "machine.onnx"), "xs": sent})
    model = LocalModel.load(learning / "machine.onnx")
    stream = model.stream()

    for x, outputs in zip(xs, found["outputs"], strict=True):
        for output, array in stream.step(x).outputs.items():
            np.testing.assert_allclose(outputs[output], array, atol=1e-5)
    assert model.stream(found["state"]["state"]).step(xs[0]).outputs.keys() == found["outputs"][0].keys()


def test_an_output_is_answered_by_its_name_where_the_graph_calls_it_otherwise(
    installed_runtime: Path, node: list[str], tmp_path: Path
) -> None:
    def renamed() -> Built:
        graph, manifest = fold()
        [y] = manifest.outputs
        return graph, manifest.model_copy(update={"outputs": [OutputSpec(**{**dict(y), "name": "x", "tensor": "y"})]})

    write_models(tmp_path, renamed=renamed)
    code = "return (await (await load(given)).stream().step({ x: [7] })).outputs;"

    assert run(installed_runtime, node, code, str(tmp_path / "renamed.onnx")) == {"x": fold_reference([7])}


def test_a_fingerprint_is_that_of_the_service_whatever_the_constants_are(
    installed_runtime: Path, node: list[str]
) -> None:
    code = """
        const { fingerprintOf } = await import("./node_modules/@stepwell/client/src/local-manifest.js");
        return given.map((text) => Buffer.from(fingerprintOf(new Uint8Array(200), text, [])).toString("hex"));
    """
    values = [1.0, 1, -2.5, 1e-05, 123456789012345680.0, 1e16, 0.1, 9007199254740993, [1.5, 2]]
    b, a = {"dtype": "float32", "unit": "°C"}, {"value": [], "dtype": "int8"}
    constants = [{"b": b | {"value": value}, "a": a} for value in values]

    found = run(installed_runtime, node, code, [json.dumps({"constants": one}) for one in constants])

    hashed = (bytes(200) + json.dumps([[], one], sort_keys=True).encode() for one in constants)
    assert found == [hashlib.blake2b(one, digest_size=8).hexdigest() for one in hashed]


def test_missing_values_reach_the_graph(installed_runtime: Path, node: list[str], folder: Path) -> None:
    code = """
        const stream = (await load(given)).stream();
        await stream.step({ a: [3, 4], b: 5 });
        const one = await stream.step({ a: [1, null] });
        return [one.outputs, (await stream.steps({ a: [[null, 2], null] })).outputs];
    """
    found = run(installed_runtime, node, code, str(folder / "last_seen.onnx"))

    assert found == [{"y": [1, 4], "z": 5}, {"y": [[1, 2], [1, 2]], "z": [5, 5]}]


def test_calls_are_made_in_their_order_and_inputs_may_be_changed_after_them(
    installed_runtime: Path, node: list[str], folder: Path
) -> None:
    code = """
        const stream = (await load(given)).stream();
        const x = new Float32Array([1]);
        const first = stream.step(x);
        x[0] = 2;
        const [second, fork] = [stream.step(x), stream.fork()];
        const failed = stream.step([1, 2]).catch((error) => error.code);
        const results = [(await first).outputs.y, (await second).outputs.y, await failed];
        return [...results, (await (await fork).step([0])).outputs.y, (await stream.state()).step];
    """

    assert run(installed_runtime, node, code, str(folder / "doubling.onnx")) == [[1], [4], "bad_input", [8], 2]


def test_a_state_is_refused_as_a_service_refuses_it(installed_runtime: Path, node: list[str], folder: Path) -> None:
    code = """
        const [model, other] = [await load(given[0]), await load(given[1])];
        const { state } = await other.stream().state();
        const refused = (text) => { try { model.stream(text); } catch (error) { return error.code; } };
        return ["", "AAAA", `${state}=`, state.slice(0, -1), state].map(refused);
    """
    files = [str(folder / f"{name}.onnx") for name in ("lstm", "fold")]

    assert run(installed_runtime, node, code, files) == ["bad_request"] * 4 + ["model_changed"]


def test_a_stream_moves_to_a_service_and_back(
    installed_runtime: Path, node: list[str], folder: Path, service: ServiceProcess
) -> None:
    code = """
        const model = await load(given.file);
        const local = model.stream();
        const there = new Client(given.url).model("doubling").stream("from-node");
        const ys = [(await local.step([1])).outputs.y];
        const moved = await local.moveTo(there);
        ys.push((await there.step([1])).outputs.y);
        const back = await LocalStream.from(model, there);
        ys.push((await back.step([1])).outputs.y);
        return [moved.step, ys, (await back.state()).step];
    """
    given = {"file": str(folder / "doubling.onnx"), "url": service.url}

    assert run(installed_runtime, node, code, given) == [1, [[1], [3], [7]], 3]


def test_a_file_without_a_manifest_is_named(installed_runtime: Path, node: list[str], tmp_path: Path) -> None:
    bare, _ = fold()
    (tmp_path / "bare.onnx").write_bytes(bare)
    code = "return load(given).catch((error) => [error.code, error instanceof StepwellError]);"

    assert run(installed_runtime, node, code, str(tmp_path / "bare.onnx")) == ["bad_manifest", True]


def test_what_runs_a_model_is_small() -> None:
    together = b"".join(file.read_bytes() for file in LOCAL)

    assert len(gzip.compress(together, 9)) < MAX_COMPRESSED_BYTES


# -------------------------------------------------------------------- Chromium


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves files that a page of another address may use."""

    extensions_map = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}  # noqa: RUF012 - as in its base class

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in its base class
        """Log nothing."""


@pytest.fixture
def files(installed_runtime: Path, folder: Path) -> Iterator[str]:
    """The address of the packages, with the models in `models`."""
    shutil.copytree(folder, installed_runtime / "models", dirs_exist_ok=True)
    handler = functools.partial(_Files, directory=str(installed_runtime))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")
def test_a_stream_begun_in_a_browser_moves_to_the_service_and_back(
    service: ServiceProcess, files: str, tmp_path: Path, folder: Path
) -> None:
    xs = np.random.default_rng(1).normal(size=(300, 4)).astype("f4")
    with Client(service.url) as client:
        whole = client.model("lstm").stream("on-one-side").steps(xs).output
    with browser(str(chromium()), tmp_path) as one_browser, one_browser.tab() as tab:
        tab.open(f"{service.url}/healthz")  # a page of the service's address, without a policy for scripts
        found = tab.evaluate(f"""(async () => {{
            const at = {json.dumps(files)};
            const ort = await import(`${{at}}/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs`);
            ort.env.wasm.wasmPaths = `${{at}}/node_modules/onnxruntime-web/dist/`;
            ort.env.wasm.numThreads = 1;
            const {{ Client }} = await import(`${{at}}/node_modules/@stepwell/client/src/index.js`);
            const {{ LocalModel, LocalStream }} = await import(`${{at}}/node_modules/@stepwell/client/src/local.js`);
            const xs = {json.dumps(xs.tolist())};
            const model = await LocalModel.load(`${{at}}/models/lstm.onnx`, {{ ort }});
            const there = new Client(location.origin).model("lstm").stream("from-a-browser");
            const results = [];
            const local = model.stream();
            for (const x of xs.slice(0, 100)) results.push(await local.step(x));
            await local.moveTo(there);
            for (const x of xs.slice(100, 200)) results.push(await there.step(x));
            const back = await LocalStream.from(model, there);
            for (const x of xs.slice(200)) results.push(await back.step(x));
            return results.map(({{ outputs, step }}) => [step, Object.values(outputs)[0]]);
        }})()""")

    assert [step for step, _ in found] == [*range(1, 301)]
    np.testing.assert_allclose([y for _, y in found], whole, atol=1e-5)
