"""A ramp over streams under load, aborted at 50 %, and promoted at 100 %; the whole: python -m campaign ramp."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.releases import ramp
from campaign.tally import Tally


@pytest.mark.slow
async def test_a_ramp_moves_no_stream_back_and_its_ends_give_each_stream_the_right_state(short_path: Path) -> None:
    tally = Tally()
    found = await ramp.run(300, 1, short_path, tally)

    assert not tally.violations, "\n".join(tally.examples())
    assert found.is_good(), found
    assert [shares[50] > 0 for shares in found.shares] == [True, True]
    assert found.shares[1][100] == 300
