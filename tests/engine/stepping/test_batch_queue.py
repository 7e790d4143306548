"""The laws of the queue, checked on random sequences of operations."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stepwell.engine.stepping.batch_queue import BatchQueue


@dataclass(frozen=True)
class Item:
    name: str
    shape: int
    number: int


class QueueMachine(RuleBasedStateMachine):
    """Enqueues, takes and releases in random order; a plain list is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: BatchQueue[Item] = BatchQueue()
        self.waiting: list[Item] = []
        self.out: dict[str, Item] = {}
        self.made: list[Item] | None = None  # an open prepared batch, to which rows can still be added
        self.count = 0

    @rule(key=st.sampled_from("abcde"), shape=st.sampled_from([1, 1, 1, 4]))
    def put(self, key: str, shape: int) -> None:
        self.count += 1
        item = Item(key, shape, self.count)
        self.waiting.append(item)
        self.queue.enqueue(item)

    @rule(key=st.sampled_from("abcde"))
    def put_in_a_prepared_batch(self, key: str) -> None:
        is_free = key not in self.out and key not in {item.name for item in self.waiting}
        assert self.queue.can_reserve([key]) is is_free
        if not self.queue.reserve(key):
            assert not is_free
            return
        assert is_free
        if self.made is None:
            self.made = []
            self.queue.enqueue_batch(self.made)
        self.count += 1
        self.made.append(Item(key, 7, self.count))
        self.waiting.append(self.made[-1])

    @rule(limit=st.integers(1, 4))
    def take(self, limit: int) -> None:
        first = {i.name: i for i in reversed(self.waiting) if i.name not in self.out}
        batch = self.queue.dequeue(limit)

        assert bool(batch) == bool(first), "a batch is available exactly when a waiting stream is not in flight"
        assert len({item.shape for item in batch}) <= 1
        assert batch is self.made or len(batch) <= limit
        if batch is self.made:
            self.made = None
        for item in batch:
            assert first[item.name] == item, "each stream's oldest item, one per stream"
            self.waiting.remove(item)
            self.out[item.name] = item

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.out)))
        self.queue.release([self.out.pop(key).name])

    @invariant()
    def row_count_equals_the_waiting_rows(self) -> None:
        assert self.queue.rows == len(self.waiting)


TestQueue = QueueMachine.TestCase


def test_the_longest_waiting_streams_are_taken_first() -> None:
    queue: BatchQueue[Item] = BatchQueue()
    items = [Item(key, 1, number) for number, key in enumerate("abcdef")]
    for item in items:
        queue.enqueue(item)

    assert [list(queue.dequeue(4)), list(queue.dequeue(4))] == [items[:4], items[4:]]


def test_a_busy_stream_does_not_delay_the_others() -> None:
    queue: BatchQueue[Item] = BatchQueue()
    for number in range(3):
        queue.enqueue(Item("busy", 1, number))
    queue.enqueue(Item("calm", 1, 3))
    taken = queue.dequeue(1)
    assert [item.name for item in taken] == ["busy"]
    queue.release([item.name for item in taken])

    assert [item.name for item in queue.dequeue(2)] == ["calm", "busy"]


def test_prepared_and_gathered_batches_alternate() -> None:
    queue: BatchQueue[Item] = BatchQueue()
    for number in range(2):
        queue.enqueue(Item(f"step{number}", 1, number))
    together = [Item(name, 1, number) for number, name in enumerate("abc", 2)]
    queue.reserve_all("abc")
    queue.enqueue_batch(together)
    queue.enqueue(Item("a", 1, 5))

    batches = [queue.dequeue(1), queue.dequeue(1), queue.dequeue(1), queue.dequeue(1)]
    queue.release("abc")

    assert [[item.name for item in batch] for batch in batches] == [["step0"], ["a", "b", "c"], ["step1"], []]
    assert [item.number for item in queue.dequeue(9)] == [5]


def test_chunks_and_single_steps_alternate() -> None:
    queue: BatchQueue[Item] = BatchQueue()
    for number in range(4):
        queue.enqueue(Item(f"step{number}", 1, number))
    queue.enqueue(Item("chunk", 50, 4))

    batches = [[item.name for item in queue.dequeue(2)] for _ in range(3)]

    assert batches == [["step0", "step1"], ["chunk"], ["step2", "step3"]]
