"""Releases: a model's next version under its live streams, gradually, and back.

    addon.py      `ReleasesAddon`: where all of it is put together for one worker
    placing.py    `ReleasePlacing`: the hook that places each stream on a version
    document.py   what is stored: `ReleaseDocument`, `Trial`, `Gate`; the membership of a stream in a share
    plan.py       `ReleasePlan`: what steps a stream next, by its record and the document; pure
    lookup.py     `Releases`: the documents of this worker: `releases.current(model)`, `releases.now()`
    counters.py   the counts of a trial in the store, added to by every worker

A document is written by compare-and-set and read by every worker within two seconds.
"""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "release": Command(
        "Move live streams to another version of their model.", "stepwell.addons.releases.command:release_app"
    )
}
