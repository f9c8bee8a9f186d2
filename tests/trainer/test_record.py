"""The record of a run: which attempts count how far, and which steps made the weights."""

import errno
import json
import os
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from tests.trainer.records import OPENED, RANKS, ROWS, apply, begin, file, save, steps, told
from trainer import checkpoint, jsonl, record
from trainer.claim import Writer, alive, refuse_if_held
from trainer.record import load
from trainer.verify import check_seals

# -- attempts and lineage --------------------------------------------------------------------------------------------


def test_an_empty_run_has_no_past(run):
    history = load(run)
    assert (history.attempts, history.lineage(), history.lost, history.checkpoints()) == ([], [], [], [])
    assert alive(run) is None
    refuse_if_held(run)


def test_an_attempt_tells_its_story(run):
    writer = begin(run)
    apply(writer, 1, 3)
    writer.append("step", step=3, positions=[24, 32], verdict="skipped", reason="non-finite gradient")
    name = save(writer, 3)
    (attempt,) = load(run).attempts
    assert (attempt.number, attempt.outcome, attempt.message, attempt.last_step) == (1, None, "", 3)
    assert (attempt.start["format"], attempt.start["version"], attempt.start["attempt"]) == ("luban-attempt", 1, 1)
    assert attempt.start["accepts"] == {} and attempt.start["ranks"] == RANKS
    assert [event["step"] for event in attempt.applied] == [1, 2, 3]
    assert len(attempt.of("step")) == 4 and [event["name"] for event in attempt.of("checkpoint")] == [name]
    writer.append("outcome", outcome="stopped", message="by TERM")
    (attempt,) = load(run).attempts
    assert (attempt.outcome, attempt.message) == ("stopped", "by TERM")
    assert abs(attempt.ended - time.time()) < 60


def test_the_lineage_goes_through_every_attempt_up_to_the_checkpoint_that_the_next_one_adopted(run):
    first = begin(run)
    apply(first, 1, 4)
    saved = save(first, 4)
    apply(first, 5, 6)
    second = begin(run, saved, 4)
    apply(second, 5, 9)
    saved = save(second, 8)
    third = begin(run, saved, 8)
    apply(third, 9, 10)
    assert told(run) == steps(1, 1, 4) + steps(2, 5, 8) + steps(3, 9, 10)
    assert load(run).lost == [(1, 5, 6), (2, 9, 9)]
    assert told(run, consumed=7 * ROWS) == steps(1, 1, 4) + steps(2, 5, 7)
    assert told(run, consumed=2 * ROWS) == steps(1, 1, 2)


def test_falling_back_to_an_older_checkpoint_leaves_out_all_that_came_after_it(run):
    first = begin(run)
    apply(first, 1, 2)
    older = save(first, 2)
    apply(first, 3, 4)
    newer = save(first, 4)
    apply(first, 5, 6)
    second = begin(run, newer, 4)
    apply(second, 5, 6)
    save(second, 6)
    apply(second, 7, 8)
    third = begin(run, older, 2)
    apply(third, 3, 5)
    assert told(run) == steps(1, 1, 2) + steps(3, 3, 5)
    assert load(run).lost == [(1, 3, 6), (2, 5, 8)]
    assert load(run).checkpoints() == [older, newer, "step-000000006.a2"]


def test_a_run_that_begins_again_at_nothing_lost_everything(run):
    apply(begin(run), 1, 3)
    apply(begin(run), 1, 2)
    assert told(run) == steps(2, 1, 2)
    assert load(run).lost == [(1, 1, 3)]


def test_skipped_updates_are_part_of_the_lineage_and_of_no_count_of_steps(run):
    writer = begin(run)
    apply(writer, 1, 2)
    writer.append("step", step=2, positions=[16, 24], verdict="skipped")
    writer.append("step", step=3, positions=[24, 32], verdict="applied")
    saved = save(writer, 3)
    writer.append("step", step=3, positions=[32, 40], verdict="skipped")
    second = begin(run, saved, 3, consumed=32)
    second.append("step", step=4, positions=[32, 40], verdict="applied")
    history = load(run)
    assert [event["positions"] for event in history.lineage()] == [[0, 8], [8, 16], [16, 24], [24, 32], [32, 40]]
    assert [event["verdict"][0] for event in history.lineage()] == list("aasaa")
    assert history.attempts[0].last_step == 3
    assert history.lost == []  # nothing that changed the weights


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_lineage_is_what_made_the_weights_whatever_happened(tmp_path_factory, data):
    """Against a model that carries its own history along: a list of the updates, copied into each checkpoint."""
    run = tmp_path_factory.mktemp("run")
    saved: dict[str, tuple[int, int, list[tuple[int, ...]]]] = {}
    weights: list[tuple[int, ...]] = []
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        name = data.draw(st.none() | st.sampled_from(sorted(saved))) if saved else None
        step, consumed, weights = (*saved[name][:2], list(saved[name][2])) if name else (0, 0, [])
        writer = Writer(run)
        writer.start(adopts=name, step=step, consumed=consumed, ranks=RANKS)
        for applied in data.draw(st.lists(st.booleans(), max_size=6)):
            step += applied
            event = {"step": step, "positions": [consumed, consumed + ROWS]}
            writer.append("step", **event, verdict="applied" if applied else "skipped")
            weights.append((number, consumed, consumed + ROWS, step))
            consumed += ROWS
            if data.draw(st.booleans()):
                name = checkpoint.folder_name(step, number)
                if name not in saved:
                    writer.append("checkpoint", step=step, name=name)
                    saved[name] = (step, consumed, list(weights))
        writer.close()
    history = load(run)
    author = {id(event): attempt.number for attempt in history.attempts for event in attempt.events}
    told = [(author[id(event)], *event["positions"], event["step"]) for event in history.lineage()]
    assert told == weights
    ends = [end for _, _, end, _ in told]
    assert [first for _, first, _, _ in told] == [0, *ends][:-1]  # every position once


def test_a_seal_covers_every_byte_of_the_attempts_that_it_goes_back_to(run):
    first = begin(run)
    apply(first, 1, 3)
    seal = first.seal()
    apply(first, 4, 5)  # lost
    assert record.digest(run, 1, seal["bytes"]) == seal["sha256"]
    start = {"adopts": save(first, 3), "step": 3, "consumed": 3 * ROWS, "ranks": RANKS, "record": seal}
    with closing(Writer(run)) as second:
        second.start(**start)
        apply(second, 4, 6)
        newest = second.seal()
    history = load(run)
    assert check_seals(history, newest).equal
    for number in (1, 2):
        text = file(run, number).read_bytes()
        file(run, number).write_bytes(text.replace(b'"loss": 2.5', b'"loss": 2.4', 1))
        found = check_seals(history, newest)
        assert not found.equal
        assert f"attempts/{number:04d}.jsonl is not as it was written" in found.detail
        file(run, number).write_bytes(text)
    file(run, 1).write_bytes(file(run, 1).read_bytes()[: seal["bytes"]])  # what was lost is not sealed
    assert check_seals(history, newest).equal
    assert record.digest(run, 1, seal["bytes"] + 1) is None
    assert record.digest(run, 7, 0) is None


def test_an_attempt_that_is_gone_is_an_error_naming_its_file(run):
    first = begin(run)
    apply(first, 1, 2)
    second = begin(run, save(first, 2), 2)
    apply(second, 3, 3)
    file(run, 1).unlink()
    with pytest.raises(UserError, match=r"lacks attempts/0001\.jsonl"):
        load(run).lineage()


def test_only_checkpoints_on_disk_that_an_accepted_event_vouches_for_exist(run):
    first = begin(run)
    kept = save(first, 2)
    gone = save(first, 4)
    (run / checkpoint.FOLDER / gone / "manifest.json").unlink()
    unsaid = run / checkpoint.FOLDER / "step-000000006.a1"
    unsaid.mkdir()
    (unsaid / "manifest.json").write_text("{}")
    begin(run, kept, 2)
    save(first, 8)  # fenced by now
    assert load(run).checkpoints() == [kept]


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_line_is_an_error_naming_file_and_line(run):
    writer = begin(run)
    apply(writer, 1, 3)
    lines = file(run, 1).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:10] + b"\0\0" + lines[2][12:]
    file(run, 1).write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"attempts/0001\.jsonl line 3 is damaged"):
        load(run)


def test_every_flipped_byte_is_found_except_in_a_last_line_that_looks_torn(run):
    writer = begin(run)
    apply(writer, 1, 2)
    text = file(run, 1).read_bytes()
    seal = len(b'", "crc": "00000000"}\n')
    for at in range(len(text) - 1):
        damaged = bytearray(text)
        damaged[at] ^= 1
        file(run, 1).write_bytes(damaged)
        line = text[:at].count(b"\n") + 1
        ends = text.index(b"\n", at)
        try:
            events = load(run).attempts[0].events
        except UserError as error:
            assert f"attempts/0001.jsonl line {line} is damaged" in str(error)
        else:  # in the name of the checksum itself: what it covers is untouched
            assert ends - seal < at < ends and len(events) == 3
    file(run, 1).write_bytes(text)
    assert told(run) == steps(1, 1, 2)


def test_a_record_shorter_than_a_later_attempt_has_accepted_is_an_error_naming_the_line(run):
    first = begin(run)
    apply(first, 1, 3)
    begin(run, save(first, 3), 3)
    text = file(run, 1).read_bytes()
    for end in (len(text) - 1, text.rindex(b"\n", 0, -1) + 1, 10, 0):
        file(run, 1).write_bytes(text[:end])
        with pytest.raises(UserError, match=rf"0001\.jsonl line {text[:end].count(bytes([10])) + 1} is damaged"):
            load(run)
    file(run, 1).write_bytes(text[:-1] + b" ")
    with pytest.raises(UserError, match=r"0001\.jsonl line 5 is damaged"):
        load(run)


def test_the_number_of_an_attempt_whose_record_is_gone_is_not_given_out_again(run):
    first = begin(run)
    apply(first, 1, 2)
    second = begin(run, save(first, 2), 2)
    apply(second, 3, 4)
    save(second, 4)
    file(run, 2).unlink()
    with pytest.raises(UserError, match=r"lacks attempts/0002\.jsonl: its record is incomplete"):
        Writer(run)
    assert not file(run, 2).exists() and not file(run, 3).exists()


def test_a_whole_line_is_never_taken_back(run, monkeypatch):
    """A newer attempt may have read it before the flush failed."""
    writer = begin(run)
    before = file(run, 1).read_bytes()

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="cannot write the record"):
        writer.append("checkpoint", step=1, name="step-000000001.a1")
    monkeypatch.undo()
    assert file(run, 1).read_bytes().startswith(before) and len(load(run).attempts[0].events) == 2


def test_a_checkpoint_without_its_event_counts_only_until_the_next_number_is_claimed(run):
    first = begin(run)
    apply(first, 1, 2)
    unsaid = run / checkpoint.FOLDER / "step-000000002.a1"
    unsaid.mkdir(parents=True)
    (unsaid / "manifest.json").write_text("{}")
    assert load(run).checkpoints() == ["step-000000002.a1"]
    claimed = Writer(run)
    OPENED[run].callback(claimed.close)
    assert claimed.history.checkpoints() == ["step-000000002.a1"]
    third = Writer(run)
    OPENED[run].callback(third.close)
    assert third.history.checkpoints() == load(run).checkpoints() == []


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "luban-attempt-ng"}])
def test_a_newer_format_is_refused_by_the_name_of_the_file(run, change):
    begin(run)
    (line,) = file(run, 1).read_text().splitlines()
    values = json.loads(line) | change
    del values["crc"]
    file(run, 1).write_bytes(jsonl.sealed(values))
    with pytest.raises(UserError, match=r"attempts/0001\.jsonl is of a newer format: use a newer Luban"):
        load(run)
