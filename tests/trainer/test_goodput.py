"""The account of a run's wall-clock, against lives that were made up second by second."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.claim import Writer
from trainer.clock import Clock
from trainer.goodput import NAMES, Goodput, Timesheet, account, before
from trainer.record import Attempt, History

BEGAN = 1_760_000_000.0


@dataclass
class Made:
    """An attempt, and what it truly did: (category, seconds) in order, with the places of readings and saves."""

    attempt: Attempt
    beat: float | None = None
    did: list[tuple[str, float]] = field(default_factory=list)
    read: int = 0
    saved: dict[str, int] = field(default_factory=dict)
    down: float = 0.0


class Life:
    """Makes the record of a run as the loop would, with time that passes when told to."""

    def __init__(self):
        self.passed = 0.0
        self.made: list[Made] = []
        self.step = 0

    @property
    def unix(self) -> float:
        return BEGAN + self.passed

    @property
    def history(self) -> History:
        return History(Path("run"), [made.attempt for made in self.made])

    @property
    def beats(self) -> dict[int, float | None]:
        return {made.attempt.number: made.beat for made in self.made}

    def begin(self, adopts: str | None = None, gap: float = 0, start_up: float = 5, supervisor: str = "start") -> None:
        self.passed += gap
        self.clock = Clock(lambda: round(1e9 * self.passed), began=round(1e9 * self.passed))
        began = self.unix
        self.step = 0 if adopts is None else int(adopts[5:14])
        self.made.append(Made(Attempt(len(self.made) + 1, []), down=gap))
        self.do("start_up", start_up)
        start = {"began": began, "adopts": adopts, "step": self.step, "consumed": self.step, "supervisor": supervisor}
        self.event("start", **start)
        self.newest.read = 1
        self.clock.enter("compute")

    @property
    def newest(self) -> Made:
        return self.made[-1]

    def event(self, kind: str, **values: object) -> None:
        self.newest.attempt.events.append({"event": kind, **values, "time": self.unix})

    def do(self, category: str, seconds: float) -> None:
        with self.clock.of(category):
            self.passed += seconds
        self.newest.did.append((category, seconds))

    def train(self, waited: float, computed: float) -> None:
        self.do("data_wait", waited)
        self.do("compute", computed)
        self.step += 1
        self.event("step", step=self.step, positions=[self.step - 1, self.step], verdict="applied", labels=1)

    def read(self) -> None:
        self.event("clock", clock=self.clock.seconds())
        self.newest.read = len(self.newest.did)

    def save(self, seconds: float = 1, read: bool = True) -> str:
        name = f"step-{self.step:09d}.a{len(self.made)}"
        self.newest.saved[name] = len(self.newest.did)
        clock = self.clock.seconds()
        self.do("checkpoint", seconds)
        self.event("checkpoint", step=self.step, name=name, clock=clock)
        if read:
            self.read()
        return name

    def end(self, outcome: str, flushed: float = 1) -> None:
        self.clock.enter("shutdown")
        self.event("outcome", outcome=outcome, message="", clock=self.clock.seconds())
        self.do("shutdown", flushed)
        self.read()

    def kill(self, after: float) -> None:
        self.do("compute", after)
        self.newest.beat = self.unix

    def truth(self) -> dict[str, float]:
        """Seconds by category, counted from what was done."""
        found = dict.fromkeys(NAMES, 0.0)
        keep: dict[int, int] = {}
        number, saved = len(self.made), list(self.newest.saved.values())
        keep[number] = saved[-1] if saved else 0
        while adopted := self.made[number - 1].attempt.start["adopts"]:
            number = int(adopted.rpartition(".a")[2])
            keep[number] = self.made[number - 1].saved[adopted]
        for made in self.made:
            found["down"] += made.down
            for place, (category, seconds) in enumerate(made.did):
                gone = place >= keep.get(made.attempt.number, 0) and category in ("compute", "data_wait")
                found["lost" if gone or place >= made.read else category] += seconds
        return found


def check(life: Life, found: Goodput) -> None:
    assert found.seconds == pytest.approx(life.truth(), abs=1e-3)
    assert found.wall == pytest.approx(life.passed, abs=1e-3)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, abs=1e-6)


seconds = st.integers(0, 2**20).map(lambda ticks: ticks / 1024)
deed = st.one_of(
    st.tuples(st.just("train"), seconds, seconds),
    st.tuples(st.just("save"), seconds, st.booleans()),
    st.tuples(st.just("do"), st.just("evaluation"), seconds),
    st.tuples(st.just("read")),
)
one_life = st.tuples(
    seconds, seconds, st.lists(deed, max_size=8), st.sampled_from(["killed", "done", "fault"]), seconds
)


@settings(deadline=None)
@given(lives=st.lists(one_life, min_size=1, max_size=5), data=st.data())
def test_whatever_happens_every_second_is_attributed_once_and_truly(lives, data):
    life, saved = Life(), []
    for number, (gap, start_up, deeds, fate, last) in enumerate(lives):
        adopts = data.draw(st.sampled_from([None, *saved])) if number else None
        life.begin(adopts, gap if number else 0, start_up)
        for what, *how in deeds:
            name = getattr(life, what)(*how)
            saved += [name] if what == "save" and name not in saved else []
        life.kill(last) if fate == "killed" else life.end(fate, last)
    found = account(life.history, life.beats)
    check(life, found)
    assert not found.notes


def test_the_work_after_the_adopted_checkpoint_is_lost_and_so_is_all_of_an_attempt_that_nobody_adopted():
    life = Life()
    life.begin()
    life.train(1, 10)
    first = life.save(2)
    life.train(1, 20)
    life.read()
    life.kill(3)
    life.begin(first, gap=7)
    life.train(1, 40)
    life.save(2)
    life.kill(0)
    life.begin(first, gap=0)  # the second's checkpoint was corrupt
    life.train(1, 50)
    life.end("stopped")
    found = account(life.history, life.beats)
    assert [each.seconds["lost"] for each in found.lives] == pytest.approx([21 + 3, 41, 51])
    assert found.seconds["compute"] == pytest.approx(10)
    life.made.pop()
    life.passed -= 5 + 51 + 1
    check(life, account(life.history, life.beats))


def test_a_checkpoint_written_in_the_background_keeps_only_what_its_weights_were_made_of():
    life = Life()
    life.begin()
    life.train(0, 10)
    clock = life.clock.seconds()
    life.train(0, 30)
    life.read()
    life.event("checkpoint", step=1, name="step-000000001.a1", clock=clock)
    life.kill(2)
    life.begin("step-000000001.a1", gap=1)
    found = account(life.history, life.beats, life.unix)
    assert found.seconds["compute"] == pytest.approx(10)
    assert found.seconds["lost"] == pytest.approx(32)


def test_a_checkpoint_whose_event_was_cut_off_counts_up_to_the_reading_before_it():
    life = Life()
    life.begin()
    life.train(0, 10)
    life.read()
    life.train(0, 4)
    life.kill(1)
    life.begin("step-000000002.a1", gap=1)
    assert account(life.history, life.beats, life.unix).seconds["compute"] == pytest.approx(10)


@pytest.mark.parametrize("said", [False, True])
def test_a_rollback_is_a_new_attempt_without_a_gap_and_its_start_up_is_its_own(said):
    life = Life()
    life.begin()
    life.train(0, 10)
    saved = life.save(2)
    life.train(0, 8)
    if said:
        life.event("outcome", outcome="rolled back", message="", clock=life.clock.seconds())
    life.passed += 1.5  # noticed, agreed, closed
    life.begin(saved, start_up=0.5, supervisor="rollback")
    life.train(0, 20)
    life.save(2)
    life.end("done")
    found = account(life.history, life.beats)
    assert found.wall == pytest.approx(life.passed)
    assert found.seconds["down"] == 0
    assert found.seconds["lost"] == pytest.approx(9.5)
    assert found.seconds["start_up"] == pytest.approx(5.5)


def test_of_a_running_attempt_the_time_since_its_last_reading_is_not_guessed():
    life = Life()
    life.begin()
    life.train(0, 10)
    life.read()
    found = account(life.history, now=life.unix + 3)
    assert found.seconds["unattributed"] == pytest.approx(3)
    assert found.wall == pytest.approx(18)
    assert found.percent == pytest.approx(100 * 10 / 18)


def test_an_attempt_without_a_clock_is_said_and_not_attributed():
    life = Life()
    life.begin()
    life.train(0, 10)
    saved = life.save(1, read=False)
    del life.newest.attempt.events[0]["began"]
    for event in life.newest.attempt.events:
        event.pop("clock", None)
    life.begin(saved, gap=4)
    life.train(0, 20)
    life.save(1)
    life.end("done")
    found = account(life.history)
    assert found.lives[0].seconds["unattributed"] == pytest.approx(11)
    assert found.wall == pytest.approx(life.passed - 5)
    assert found.notes == ["attempt 1 was recorded without a clock: its 11 s can't be attributed"]
    life.made.pop()
    assert account(life.history).percent is None


def test_a_wall_clock_set_back_makes_no_time_negative_and_is_said():
    life = Life()
    life.begin()
    life.train(0, 10)
    saved = life.save(1)
    life.end("stopped")
    own = life.passed
    life.begin(saved, gap=100)
    life.train(0, 10)
    life.save(1)
    life.end("done")
    later = life.newest.attempt.events
    later[0]["began"] -= 1000
    for event in later:
        event["time"] -= 1000
    found = account(life.history)
    assert found.seconds["down"] == 0
    assert found.wall == pytest.approx(life.passed - 100)
    assert found.notes[0].startswith("attempt 2 began 900 s before attempt 1 had ended")
    for event in later[2:]:
        event["time"] += 5000
    found = account(life.history)
    assert found.wall == pytest.approx(own + (life.passed - 100 - own))
    assert "the wall clock was moved by +5000 s during attempt 2" in found.notes


def test_a_heartbeat_after_the_next_start_is_of_a_copied_folder_or_a_fenced_attempt_and_not_counted():
    life = Life()
    life.begin()
    life.train(0, 10)
    saved = life.save(1)
    life.begin(saved, gap=30)
    found = account(life.history, {1: life.unix + 10_000}, life.unix)
    assert found.lives[1].seconds["down"] == pytest.approx(30)


def test_what_a_running_attempt_logs_is_what_is_accounted_later(tmp_path):
    life = Life()
    life.begin()
    life.train(1, 9)
    saved = life.save(2)
    life.train(0, 4)
    life.end("fault", 2)
    life.begin(saved, gap=6)
    life.train(1, 30)
    start = life.newest.attempt.start
    earlier = before(History(tmp_path, life.history.attempts[:1]), 2, start)
    writer = Writer(tmp_path)
    writer.start(adopts=None, step=0, consumed=0)
    sheet = Timesheet(life.clock, writer, earlier)
    logged = sheet.figures()
    life.read()
    found = account(life.history, now=life.unix)
    assert logged == {f"goodput/{name}_pct": pytest.approx(100 * spent / found.wall)
                      for name, spent in found.seconds.items() if name != "unattributed"}  # fmt: skip
    assert sum(logged.values()) == pytest.approx(100)
    life.passed += 4.9
    sheet.write()
    assert "clock" not in (tmp_path / "attempts" / "0001.jsonl").read_text()
    life.passed += 0.1
    sheet.write()
    sheet.write()
    assert (tmp_path / "attempts" / "0001.jsonl").read_text().count('"event": "clock"') == 1
    writer.close()


def test_a_run_that_has_not_begun_has_no_figures():
    found = account(History(Path("run"), []))
    assert (found.wall, found.percent, list(found.shown())) == (0, None, [])
