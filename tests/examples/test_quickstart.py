"""The README's quickstart is examples/quickstart.py, and it works."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from tests.examples.runs import EXAMPLES, REPOSITORY, run_python
from tests.processes import free_port

QUICKSTART = (EXAMPLES / "quickstart.py").read_text()


def test_the_readme_shows_the_quickstart_unchanged() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    assert QUICKSTART in blocks


@pytest.mark.slow
def test_the_quickstart_gives_the_predictions_of_keras(tmp_path: Path) -> None:
    """On another port, since 8001 may be in use."""
    port = str(free_port())
    script = tmp_path / "quickstart.py"
    script.write_text(QUICKSTART.replace("8001", port))

    ran = run_python(script.name, folder=tmp_path, STEPWELL_DRAIN_S="0")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    served, keras = ran.stdout.split("\n", 1)
    steps, predictions = zip(*ast.literal_eval(served), strict=True)
    assert steps == (1, 2, 3, 4, 5)
    np.testing.assert_allclose(np.ravel(predictions), [float(n) for n in re.findall(r"[-\d.e]+", keras)], atol=1e-6)
