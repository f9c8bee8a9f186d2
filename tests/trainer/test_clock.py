"""Whatever a rank does, its seconds add up to the time that passed."""

import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.clock import CATEGORIES, Clock, boot_ns, process_start_ns

doing = st.recursive(
    st.tuples(st.just("enter"), st.sampled_from(CATEGORIES), st.integers(0, 10**12))
    | st.tuples(st.just("restart"), st.none(), st.integers(0, 10**12)),
    lambda inner: st.tuples(st.just("of"), st.sampled_from(CATEGORIES), st.lists(inner, max_size=4)),
    max_leaves=20,
)


class Told:
    """A clock whose time passes when told to, and what it should say."""

    def __init__(self, early: int):
        self.now = 5 * 10**15 + early
        self.clock = Clock(lambda: self.now, began=5 * 10**15)
        self.own, self.all = {"start_up": early}, {"start_up": early}

    def do(self, what: str, category: str | None, more: object) -> None:
        if what == "of":
            outer = self.clock.category
            with self.clock.of(category):
                for each in more:
                    self.do(*each)
            assert self.clock.category == outer
            return
        if what == "restart":
            self.clock.restart()
            self.own = {}
        else:
            self.clock.enter(category)
        self.now += more
        for account in (self.own, self.all):
            account[self.clock.category] = account.get(self.clock.category, 0) + more


@settings(deadline=None)
@given(early=st.integers(0, 10**11), done=st.lists(doing, max_size=12))
def test_the_seconds_of_all_categories_are_the_time_that_passed(early, done):
    told = Told(early)
    for each in done:
        told.do(*each)
    seconds = told.clock.seconds()
    assert tuple(seconds) == CATEGORIES
    assert seconds == {name: told.own.get(name, 0) / 1e9 for name in CATEGORIES}
    assert told.clock.running() == sum(told.all.values()) / 1e9
    if told.own == told.all:
        assert told.clock.running() == (told.now - 5 * 10**15) / 1e9


def test_an_exception_leaves_the_category_it_was_raised_in():
    told = Told(0)
    told.clock.enter("compute")
    with pytest.raises(OSError), told.clock.of("evaluation"), told.clock.of("checkpoint"):
        told.now += 10**9
        raise OSError
    assert told.clock.category == "compute"
    assert told.clock.seconds()["checkpoint"] == 1


def test_a_category_that_does_not_exist_is_refused_and_changes_nothing():
    told = Told(0)
    with pytest.raises(ValueError, match="'idle' is no category of the clock"), ExitStack() as stack:
        stack.enter_context(told.clock.of("idle"))
    assert told.clock.category == "start_up"


def test_it_counts_from_the_start_of_the_process_whatever_the_wall_clock_says():
    before = boot_ns()
    code = (
        "import time; time.sleep(0.5); time.time = lambda: 0.0\n"
        "from trainer.clock import *\n"
        "clock = Clock(); print(process_start_ns(), clock.seconds()['start_up'], clock.began)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    began, start_up, unix = map(float, made.stdout.split())
    assert before - 2e7 <= began <= boot_ns()  # the kernel counts in hundredths
    assert 0.5 <= start_up <= (boot_ns() - began) / 1e9
    assert unix == pytest.approx(-start_up, abs=0.1)


def test_began_is_the_unix_time_of_the_first_second():
    clock = Clock()
    assert clock.began == pytest.approx(time.time() - (boot_ns() - process_start_ns()) / 1e9, abs=0.2)
    clock.restart()
    assert clock.began == pytest.approx(time.time(), abs=0.2)
    assert sum(clock.seconds().values()) < 0.1 * clock.running()
