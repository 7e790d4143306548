"""Decoders whose key and value caches grow with every timestep are adopted with caches of a declared length."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.adopt_file import Adopted, adopt_file
from stepwell_export.runtime.errors import ParityError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.commands.program import run_stepwell
from tests.model_export.torch.zoo_parts import nn, torch

VOCABULARY, WIDTH, HEADS, KEYS, SIZE, LAYERS = 23, 16, 4, 2, 4, 2
LENGTH, POSITIONS = 6, 15
CACHES = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]


class CachedLayer(nn.Module):
    """Grouped attention over a cache, and a feed-forward part, as in decoders of Hugging Face's transformers."""

    def __init__(self, *, rotary: bool, newest_first: bool = False) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, KEYS * SIZE), nn.Linear(WIDTH, KEYS * SIZE)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.rotary, self.newest_first = rotary, newest_first

    def forward(self, x: Any, allowed: Any, angles: Any, past_k: Any, past_v: Any) -> tuple[Any, Any, Any]:
        rows, steps, _ = x.shape
        h = self.before(x)
        q, k, v = (part(h).reshape(rows, steps, -1, SIZE).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.rotary:
            q, k = turned(q, angles), turned(k, angles)
        k, v = (
            torch.cat([new, past] if self.newest_first else [past, new], 2) for past, new in ((past_k, k), (past_v, v))
        )
        keys, values = (part.repeat_interleave(HEADS // KEYS, 1) for part in (k, v))
        scores = q @ keys.transpose(2, 3) / SIZE**0.5
        scores = torch.where(allowed, scores, torch.finfo(torch.float32).min)
        y = (torch.softmax(scores, -1) @ values).transpose(1, 2).reshape(rows, steps, -1)
        x = x + self.out(y)
        return x + self.down(torch.nn.functional.gelu(self.up(self.behind(x)))), k, v


def turned(x: Any, angles: Any) -> Any:
    """Rotary positions: halves of the features are turned against each other."""
    left, right = x.chunk(2, -1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class Decoder(nn.Module):
    """`(input_ids, attention_mask, position_ids, *past) -> (logits, *present)`; the mask or the positions may lack."""

    def __init__(self, positions: str, *, mask: bool = True, newest_first: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layers = nn.ModuleList(
            CachedLayer(rotary=positions == "rotary", newest_first=newest_first) for _ in range(LAYERS)
        )
        self.table = nn.Embedding(POSITIONS, WIDTH)
        self.register_buffer("frequencies", 10.0 ** -torch.arange(SIZE // 2))
        self.positions, self.mask = positions, mask
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    @property
    def takes(self) -> list[str]:
        """The names of its inputs, those of the caches last."""
        named = ["attention_mask"] * self.mask + ["position_ids"] * (self.positions in {"learned", "rotary"})
        return [
            "input_ids",
            *named,
            *(f"past_key_values.{n}.{kind}" for n in range(LAYERS) for kind in ("key", "value")),
        ]

    @property
    def gives(self) -> list[str]:
        """The names of its outputs."""
        return ["logits", *(f"present.{name}" for name in CACHES)]

    def forward(self, *given: Any, band: int | None = None) -> tuple[Any, ...]:
        sent = dict(zip(self.takes, given, strict=True))
        ids, past = sent["input_ids"], list(given[-2 * LAYERS :])
        before, steps = past[0].shape[2], ids.shape[1]
        places = sent.get("position_ids", before + torch.arange(steps)[None])
        x = self.embedding(ids)
        if self.positions in {"learned", "counted"}:
            x = x + self.table(places)
        angles = places[..., None] * self.frequencies
        age = before + torch.arange(steps)[:, None] - torch.arange(before + steps)[None]
        allowed = age >= 0 if band is None else (age >= 0) & (age < band)
        if self.mask:
            allowed = allowed & sent["attention_mask"].bool()[:, None, None, :]
        present: list[Any] = []
        for layer in self.layers:
            x, *made = layer(x, allowed, angles, *past[len(present) : len(present) + 2])
            present += made
        return self.head(x), *present

    def example(self, rows: int, before: int, steps: int) -> list[Any]:
        """Return random inputs after so many timesteps."""
        sent = {
            "input_ids": torch.randint(0, VOCABULARY, (rows, steps)),
            "attention_mask": torch.ones(rows, before + steps, dtype=torch.int64),
            "position_ids": (before + torch.arange(steps))[None].expand(rows, -1),
        }
        return [sent[n] if n in sent else torch.randn(rows, KEYS, before, SIZE) for n in self.takes]


class GreedyDecoder(Decoder):
    """A decoder whose answer is the likeliest word."""

    def forward(self, *given: Any, band: int | None = None) -> tuple[Any, ...]:
        logits, *present = super().forward(*given, band=band)
        return logits.argmax(-1), *present


def decoder(positions: str, **options: bool) -> Decoder:
    torch.manual_seed(7)
    made = Decoder(positions, **options)
    made.eval()
    return made


def exported(folder: Path, module: Decoder) -> Path:
    """Write a decoder as Hugging Face's exporter does: the same names, the same open axes."""
    axes: dict[str, dict[int, str]] = {}
    for name in (*module.takes, *module.gives):
        if name.startswith(("past", "present")):
            axes[name] = {0: "batch_size", 2: f"{'past' if name.startswith('past') else 'total'}_sequence_length"}
        else:
            axes[name] = {0: "batch_size", 1: "sequence_length"}
    axes["attention_mask"] = {0: "batch_size", 1: "total_sequence_length"}
    path = folder / "decoder.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(module.example(2, 3, 2)), str(path), dynamo=False, opset_version=17,
            input_names=module.takes, output_names=module.gives, dynamic_axes={n: axes[n] for n in axes if n in
            {*module.takes, *module.gives}},
        )  # fmt: skip
    return path


def bounded(folder: Path, module: Decoder, length: int = LENGTH) -> tuple[Adopted, StepModel]:
    adopted = adopt_file(exported(folder, module), length=length, target=folder / "new.onnx")
    return adopted, StepModel(folder / "new.onnx")


def whole(module: Decoder, ids: Array, length: int = LENGTH) -> Array:
    """Run the module in PyTorch over whole sequences, each timestep attending to the last ones: `(rows, T, words)`."""
    sent = dict(zip(module.takes, module.example(len(ids), 0, ids.shape[1]), strict=True))
    with torch.no_grad():
        return np.asarray(module(*{**sent, "input_ids": torch.from_numpy(ids)}.values(), band=length)[0])


def stepped(model: StepModel, ids: Array) -> Array:
    outputs, _ = model.chunk({"input_ids": ids[..., None]}, model.initial_states(len(ids)))
    return outputs["logits"]


def words(rows: int, steps: int) -> Array:
    return np.random.default_rng(3).integers(0, VOCABULARY, (rows, steps))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_decoder_with_bounded_caches_attends_to_the_last_timesteps(tmp_path: Path, positions: str) -> None:
    module = decoder(positions)

    adopted, model = bounded(tmp_path, module)

    ids = words(3, POSITIONS)
    np.testing.assert_allclose(stepped(model, ids), whole(module, ids), rtol=0, atol=1e-4)
    assert model.batched
    assert adopted.manifest.verified is not None
    assert adopted.manifest.verified.against == "decoder.onnx with caches that grow"
    assert [spec.name for spec in adopted.manifest.inputs] == ["input_ids"]
    shapes = {state.input: state.shape for state in adopted.manifest.states}
    assert shapes["caches.timesteps"] == [1]
    assert shapes["past_key_values.1.value.window"] == [KEYS, LENGTH - 1, SIZE]


def test_rows_run_together_may_have_had_different_numbers_of_timesteps(tmp_path: Path) -> None:
    _, model = bounded(tmp_path, decoder("rotary"))
    ids = words(2, 12)
    _, early = model.chunk({"input_ids": ids[:1, :3, None]}, model.initial_states(1))
    _, late = model.chunk({"input_ids": ids[1:, :11, None]}, model.initial_states(1))

    rows = {name: np.concatenate([early[name], late[name]]) for name in early}
    together, _ = model.step({"input_ids": np.stack([ids[:1, 3], ids[1:, 11]])}, rows)

    alone = [stepped(model, ids[:1, :4])[0, -1], stepped(model, ids[1:])[0, -1]]
    np.testing.assert_allclose(together["logits"], alone, rtol=0, atol=1e-5)


def test_long_caches_are_compared_at_their_end_too(tmp_path: Path) -> None:
    module, length = decoder("rotary"), 70

    adopted, model = bounded(tmp_path, module, length)

    ids = words(1, length + 10)
    np.testing.assert_allclose(stepped(model, ids), whole(module, ids, length), rtol=0, atol=1e-4)
    assert adopted.manifest.verified is not None
    assert adopted.manifest.verified.steps == 64 + 12


def test_more_timesteps_than_there_are_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedModelError, match=f"has {POSITIONS} positions") as caught:
        bounded(tmp_path, decoder("learned"), POSITIONS + 1)

    assert caught.value.fix == f"Declare at most {POSITIONS}."


def test_a_position_without_an_entry_in_the_table_gives_no_number(tmp_path: Path) -> None:
    _, model = bounded(tmp_path, decoder("learned"))

    logits = stepped(model, words(1, POSITIONS + 2))[0]

    assert np.isfinite(logits[:POSITIONS]).all()
    assert np.isnan(logits[POSITIONS:]).all()


@pytest.mark.parametrize(("positions", "mask"), [("counted", False)])
def test_positions_that_are_counted_from_the_cache_end_with_the_declared_length(
    tmp_path: Path, positions: str, mask: bool
) -> None:
    module = decoder(positions, mask=mask)

    _, model = bounded(tmp_path, module)

    ids = words(1, LENGTH + 2)
    logits = stepped(model, ids)
    np.testing.assert_allclose(logits[:, :LENGTH], whole(module, ids)[:, :LENGTH], rtol=0, atol=1e-4)
    assert np.isnan(logits[:, LENGTH:]).all()
    assert not model.batched


@pytest.mark.parametrize("positions", ["learned"])
def test_a_decoder_that_returns_no_floats_is_refused_where_its_positions_end(tmp_path: Path, positions: str) -> None:
    with pytest.raises(RefusedModelError, match="no output is of floating-point numbers") as caught:
        bounded(tmp_path, GreedyDecoder(positions).eval())

    assert "logits" in caught.value.fix


def test_an_initial_value_of_a_growing_cache_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, decoder("rotary"))

    with pytest.raises(UnclearModelError, match=r"'past_key_values\.0\.key' has an initial value"):
        adopt_file(path, length=LENGTH, initial={"past_key_values.0.key": 1.0}, target=tmp_path / "new.onnx")


def test_without_a_length_the_flag_that_declares_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError, match="is a cache that grows") as caught:
        adopt_file(exported(tmp_path, decoder("rotary")))

    assert "`--length N -o NEW.onnx`" in caught.value.fix


@pytest.mark.parametrize("length", [2])
def test_a_cache_with_its_newest_timestep_in_front_is_refused(tmp_path: Path, length: int) -> None:
    """With a length of 2, the oldest timestep and the last one are the same only for the first two."""
    with pytest.raises(ParityError, match="does not begin with what it was"):
        bounded(tmp_path, decoder("rotary", newest_first=True), length)

    assert not (tmp_path / "new.onnx").exists()


def test_caches_with_other_names_are_set_by_hand_and_stored_in_half_the_size(tmp_path: Path) -> None:
    path, new = exported(tmp_path, decoder("rotary")), tmp_path / "new.onnx"
    model = onnx.load(str(path))
    names = {f"present.{cache}": f"kept_{at}" for at, cache in enumerate(CACHES)}
    for field in (name for node in model.graph.node for name in (node.input, node.output)):
        field[:] = [names.get(tensor, tensor) for tensor in field]
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)
    onnx.save(model, str(path))
    with pytest.raises(RefusedModelError, match="No cache was found"):
        adopt_file(path, length=LENGTH, target=new)

    pairs = {f"past_key_values.{cache}": f"kept_{at}" for at, cache in enumerate(CACHES)}
    adopted = adopt_file(path, length=LENGTH, states=pairs, store_dtype="float16", target=new)

    assert adopted.store is not None
    assert 0 < adopted.store.max_abs < 1e-2
    assert {state.store_dtype for state in StepModel(new).manifest.states} == {"float16", "int64"}


def test_a_graph_that_returns_its_caches_alone_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, decoder("rotary"))
    model = onnx.load(str(path))
    model.graph.output.remove(next(value for value in model.graph.output if value.name == "logits"))
    onnx.save(model, str(path))

    with pytest.raises(RefusedModelError, match="no output besides its caches"):
        adopt_file(path, length=LENGTH, target=tmp_path / "new.onnx")


def test_an_output_that_grows_with_the_caches_is_refused_by_name(tmp_path: Path) -> None:
    path = exported(tmp_path, decoder("rotary"))
    model = onnx.load(str(path))
    model.graph.node.append(onnx.helper.make_node("Abs", ["present.0.key"], ["sizes"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("sizes", onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(path))

    with pytest.raises(ParityError, match="Output 'sizes' has shape"):
        adopt_file(path, length=LENGTH, target=tmp_path / "new.onnx")


def test_the_command_writes_the_file_and_the_words_that_make_it_again(tmp_path: Path) -> None:
    path, new = exported(tmp_path, decoder("rotary")), tmp_path / "new.onnx"

    first = run_stepwell("adopt", path, "--length", str(LENGTH), "-o", new, "--json")
    again = run_stepwell("adopt", path, *json.loads(first.stdout)["flags"], "-o", tmp_path / "again.onnx")

    assert (first.exit_code, again.exit_code) == (0, 0)
    assert new.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert run_stepwell("adopt", path, "--length", str(LENGTH)).exit_code == 2
