"""Several observers of one engine."""

from __future__ import annotations

from stepwell.engine.observer import EngineObserver, all_of


class Notes(EngineObserver):
    def __init__(self) -> None:
        self.notes: list[tuple[object, ...]] = []

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        self.notes.append((model, rows, seconds))


class Conflicts(Notes):
    def conflicts(self, n: int) -> None:
        self.notes.append((n,))


def test_each_observer_gets_the_notifications_that_it_handles() -> None:
    one, other = Notes(), Conflicts()
    together = all_of([one, other])
    together.batch_run("m", 3, 0.5)
    together.conflicts(2)
    together.replays(1)

    assert (one.notes, other.notes) == ([("m", 3, 0.5)], [("m", 3, 0.5), (2,)])


def test_a_notification_that_one_observer_handles_is_its_own_method() -> None:
    other = Conflicts()

    assert all_of([Notes(), other]).conflicts == other.conflicts
