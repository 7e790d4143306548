"""Releases: a model's next version under its live streams, gradually, and back.

    document.py   what is stored: `ReleaseDocument`, `Trial`, `Gate`; the membership of a stream in a share
    lookup.py     `Releases`: the documents of this worker, for the engine: `releases.current(model)`, `releases.now()`
    counters.py   the counts of a trial in the store, added to by every worker

A document is written by compare-and-set and read by every worker within two seconds.
"""
