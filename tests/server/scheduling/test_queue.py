"""The queue, with integers as work and a clock that is an argument."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from server.scheduling import Queue, Waiting

Spec = tuple[int, int, int, float | None]  # shape, priority, arrival, deadline

items = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 9), st.none() | st.floats(0.0, 20.0)), max_size=30
)


def filled(specs: Sequence[Spec], max_batch: int = 4, max_pixels: int = 1000) -> Queue[int]:
    queue: Queue[int] = Queue(max_batch, max_pixels)
    for number, (shape, priority, since, deadline) in enumerate(specs):
        queue.push(Waiting(number, shape, shape * 10, float(since), priority, deadline))
    return queue


@given(items, st.integers(1, 6), st.sampled_from([1, 30, 1000]), st.integers(1, 4), st.integers(1, 8))
def test_everybody_leaves_once_in_batches_that_fit(
    specs: list[Spec], max_batch: int, max_pixels: int, idle: int, worth: int
) -> None:
    queue = filled(specs, max_batch, max_pixels)
    left: list[int] = []
    while len(queue):
        batch, late = queue.take(10.0, idle, worth)
        assert batch or late
        assert len({item.shape for item in batch}) <= 1
        assert len(batch) <= min(max_batch, worth)
        assert len(batch) <= 1 or sum(item.pixels for item in batch) <= max_pixels
        assert all(item.deadline is None or item.deadline > 10.0 for item in batch)
        assert all(item.deadline is not None and item.deadline <= 10.0 for item in late)
        left += [item.work for item in (*batch, *late)]
    assert sorted(left) == list(range(len(specs)))


@given(items)
def test_turns_are_taken_by_age_and_a_step_of_priority_is_a_second(specs: list[Spec]) -> None:
    patient = [(shape, priority, since, None) for shape, priority, since, _ in specs]
    queue = filled(patient, max_batch=1)
    order = []
    while len(queue):
        order += queue.take(100.0)[0]
    assert [item.urgency for item in order] == sorted(item.urgency for item in order)


@given(items, st.integers(0, 9))
def test_who_goes_before_a_newcomer_is_known_before_it_comes(specs: list[Spec], priority: int) -> None:
    patient = [(shape, priority, since, None) for shape, priority, since, _ in specs]
    queue = filled(patient, max_batch=1)
    newcomer: Waiting[int] = Waiting(-1, 1, 10, 10.0, priority)
    ahead = queue.ahead_of(newcomer.urgency)
    queue.push(newcomer)
    order = []
    while len(queue):
        order += queue.take(100.0)[0]
    assert ahead == order[: order.index(newcomer)]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 16))
def test_what_waits_is_split_over_the_idle_workers(waiting: int, idle: int, max_batch: int) -> None:
    queue = filled([(1, 0, 0, None)] * waiting, max_batch)
    sizes = [len(queue.take(0.0, left)[0]) for left in range(idle, 0, -1)]
    assert sum(sizes) == min(waiting, idle * max_batch)
    assert max(sizes) - min(size for size in sizes if size or waiting >= idle) <= 1


@given(items, st.data())
def test_who_gives_up_is_gone_and_nobody_else(specs: list[Spec], data: st.DataObject) -> None:
    queue = filled([(shape, priority, since, None) for shape, priority, since, _ in specs])
    inside = list(queue)
    gone = data.draw(st.lists(st.sampled_from(inside), unique_by=id)) if inside else []
    assert all(queue.remove(item) for item in gone)
    assert not any(queue.remove(item) for item in gone)
    assert [item.work for item in queue] == [item.work for item in inside if item not in gone]


def test_one_batch_drawn() -> None:
    queue = filled([(1, 0, 0, None), (2, 0, 1, None), (1, 0, 2, None), (1, 0, 3, None), (1, 9, 3, None)])
    batch, _ = queue.take(5.0, idle=2)
    assert [item.work for item in batch] == [4, 0]  # the urgent one, and half of its kind
