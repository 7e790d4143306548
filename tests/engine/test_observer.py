"""Several observers of one engine."""

from __future__ import annotations

from stepwell.engine.observer import EngineObserver, all_of, follows_batches


class Notes(EngineObserver):
    def __init__(self) -> None:
        self.notes: list[tuple[object, ...]] = []

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        self.notes.append((model, rows, seconds))


class Conflicts(Notes):
    def conflicts(self, n: int) -> None:
        self.notes.append((n,))


class Ends(Notes):
    def batch_ended(self) -> None:
        self.notes.append(("ended",))


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


def test_an_observer_follows_batches_if_it_or_one_of_those_that_it_stands_for_handles_their_end() -> None:
    followed = [follows_batches(one) for one in (Ends(), all_of([Notes(), Ends()]), all_of([Ends(), Ends()]))]

    assert followed == [True, True, True]
    assert not any(follows_batches(one) for one in (EngineObserver(), Notes(), all_of([Notes(), Conflicts()])))
