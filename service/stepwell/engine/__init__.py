"""The engine: queue, batches across streams, decide, run, commit, answer. No web, no database driver."""
