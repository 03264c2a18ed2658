"""Folds at once give what folds one after another give, and stop together."""

from __future__ import annotations

import time
from threading import Barrier, Event

import pytest
import torch

from bench.training.cross_validation import run_in_parallel
from bench.types import SILENT, Watch

CPU = torch.device("cpu")


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(at_once: int) -> None:
    def work(item: int, watch: Watch) -> int:
        time.sleep(0.01 * (3 - item))
        return item * item

    assert run_in_parallel(work, [0, 1, 2], at_once, CPU, SILENT) == [0, 1, 4]


def test_so_many_run_at_the_same_time() -> None:
    meeting = Barrier(3)
    assert run_in_parallel(lambda item, watch: meeting.wait(10) >= 0, range(3), 3, CPU, SILENT) == [True] * 3


def test_threads_are_shared_out_and_given_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert run_in_parallel(lambda item, watch: torch.get_num_threads(), range(2), 2, CPU, SILENT) == [2, 2]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_one_that_breaks_stops_the_others_and_is_the_one_that_is_raised() -> None:
    started, ended = Event(), []

    def work(item: int, watch: Watch) -> None:
        if item == 0:
            started.wait(10)
            raise ValueError("broken")
        try:
            while True:
                watch.images(1)
                started.set()
                time.sleep(0.001)
        except KeyboardInterrupt:
            ended.append(item)
            raise

    with pytest.raises(ValueError, match="broken"):
        run_in_parallel(work, [0, 1], 2, CPU, SILENT)
    assert ended == [1]


def test_what_the_folds_say_is_passed_on() -> None:
    class Ear(Watch):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def say(self, text: str) -> None:
            self.heard.append(text)

        def images(self, count: int) -> None:
            self.heard.append(count)

    ear = Ear()

    def work(item: int, watch: Watch) -> None:
        watch.say("out of memory")
        watch.images(4)

    run_in_parallel(work, [0, 1], 2, CPU, ear)
    assert sorted(map(str, ear.heard)) == ["4", "4", "out of memory", "out of memory"]
