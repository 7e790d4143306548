"""Create `basic_motions.npz` from the BasicMotions files of sktime (needs `pip install --no-deps sktime`).

The result is committed, so nobody has to run this script. It documents the conversion: the numbers are read as float32,
and the time axis is moved before the channels.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ACTIVITIES = ["standing", "running", "walking", "badminton"]
CHANNELS = ["accel x", "accel y", "accel z", "gyro x", "gyro y", "gyro z"]
RATE_HZ = 10.0


def read_ts(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a `.ts` file whose recordings all have the same length.

    Args:
        file: One recording a line: channels separated by colons, values by commas, the class at the end.

    Returns:
        The recordings, (recording, timestep, channel) float32, and their classes, (recording,) int64,
        counting from 0 in the order of `ACTIVITIES`.
    """
    recordings, labels = [], []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line or line[0] in "#@":
            continue
        *channels, label = line.split(":")
        recordings.append([[float(value) for value in channel.split(",")] for channel in channels])
        labels.append(ACTIVITIES.index(label.strip().lower()))
    return np.asarray(recordings, np.float32).transpose(0, 2, 1), np.asarray(labels)


def main() -> None:
    folder = Path(str(distribution("sktime").locate_file("sktime/datasets/data/BasicMotions")))
    x_train, y_train = read_ts(folder / "BasicMotions_TRAIN.ts")
    x_test, y_test = read_ts(folder / "BasicMotions_TEST.ts")
    np.savez_compressed(
        HERE / "basic_motions.npz",
        x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test,
        channels=CHANNELS, classes=ACTIVITIES, rate_hz=RATE_HZ,
    )  # fmt: skip
    print(f"train {x_train.shape}, test {x_test.shape}, classes {np.bincount(y_train)} and {np.bincount(y_test)}")


if __name__ == "__main__":
    main()
