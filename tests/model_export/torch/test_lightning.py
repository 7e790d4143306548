"""A module of PyTorch Lightning is exported after its training, and from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.export_sources import load_source
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.spec import StepSpec
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_parts import nn, torch

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed (pip install lightning)")


class TrainedPump(lightning.LightningModule):  # type: ignore[name-defined]  # a variable for mypy
    """A recurrent regression whose width is a hyperparameter."""

    def __init__(self, width: int, rate: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lstm, self.head = nn.LSTM(3, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0])

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.hparams.rate)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Any, Path]:
    """A module with its trainer still attached, and the checkpoint that the trainer wrote."""
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(8, 12, 3), torch.randn(8, 12, 2))
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = TrainedPump(width=5)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module, tmp_path / "last.ckpt"


def served(module: Any) -> StepModel:
    spec = StepSpec(module, inputs={"x": torch.randn(2, 9, 3)}, time_axis=1, output_names=["wear"])
    return StepModel(verify_model(convert(spec, name="pump"), long_steps=100)[0])


@pytest.mark.filterwarnings("ignore")
def test_a_trained_module_and_its_checkpoint_give_one_model(trained: tuple[Any, Path]) -> None:
    module, checkpoint = trained

    attached, loaded = served(module), served(TrainedPump.load_from_checkpoint(checkpoint))

    x = np.random.default_rng(0).standard_normal((2, 20, 3)).astype(np.float32)
    found, again = (model.chunk({"x": x}, model.initial_states(2))[0]["wear"] for model in (attached, loaded))
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found, again)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_alone_is_refused_with_the_function_to_write(trained: tuple[Any, Path]) -> None:
    with pytest.raises(RefusedModelError, match="is a checkpoint of weights") as caught:
        load_source(str(trained[1]))

    assert "load_from_checkpoint" in caught.value.fix
