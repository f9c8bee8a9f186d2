"""The desk where a driver and its workers meet, without Ray: its calls are coroutines that wait for one another."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.ray.desk import Desk, End, LifeOrder

FIRST, SECOND = (LifeOrder(name, "/runs/x/logs/attempt-1", ()) for name in ("first", "second"))
SOON_S = 5.0


async def soon(call) -> object:
    return await asyncio.wait_for(call, SOON_S)


async def waits(call) -> asyncio.Task:
    """The call as a task that is still waiting a moment later."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


def test_a_group_waits_for_its_life_and_the_next_one_begins_in_the_same_group() -> None:
    async def story() -> None:
        desk = Desk()
        taking = await waits(desk.take("a", 2))
        await desk.begin(FIRST)
        assert await soon(taking) == FIRST
        assert (await desk.look()).size == 2
        for rank in range(2):
            await desk.ended("first", rank, End(rank))
        assert (await desk.look()).ends == {0: End(0), 1: End(1)}
        again = await waits(desk.take("a", 2))
        await desk.begin(SECOND)
        assert await soon(again) == SECOND

    asyncio.run(story())


def test_a_life_is_taken_once_and_a_group_in_another_s_place_ends_it() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.begin(FIRST)
        assert await desk.take("a", 2) == FIRST
        taking = await waits(desk.take("b", 1))
        assert (await desk.look()).lost == "a worker died, and Ray Train replaced the group"
        await desk.begin(SECOND)
        assert await soon(taking) == SECOND
        await desk.ended("first", 0, End(0))  # a late word of the one before
        assert not (await desk.look()).ends

    asyncio.run(story())


def test_what_is_left_of_a_replaced_group_takes_no_life_away_from_the_next() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.begin(FIRST)
        assert await desk.take("a", 2) == FIRST
        await desk.replace()
        assert (await desk.look()).lost
        await desk.begin(SECOND)
        assert await soon(desk.take("a", 2)) == "leave"
        assert await soon(desk.take("b", 2)) == SECOND

    asyncio.run(story())


def test_orders_reach_whoever_waits_for_them_once_and_end_what_is_left_of_an_old_life() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.begin(FIRST)
        await desk.take("a", 1)
        waiting = await waits(desk.orders("first", "10.0.0.2", 0))
        await desk.order("signal", 15)
        assert await soon(waiting) == [("signal", 15)]
        assert (await desk.look()).nodes == {"10.0.0.2"}
        waiting = await waits(desk.orders("first", "10.0.0.2", 1))
        await desk.begin(SECOND)
        assert await soon(waiting) == [("end", 0)]

    asyncio.run(story())


def test_a_group_that_must_go_saves_first_and_never_takes_another_life() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.begin(FIRST)
        await desk.take("a", 2)
        moving = await waits(desk.move(None, "there is room for 3", 10, 60))
        assert await desk.orders("first", "10.0.0.2", 0) == [("signal", 10)]
        assert (
            await desk.move("a", "again", 10, 0.0) is False
        )  # two may notice it: one signal, or the second would end all
        assert await desk.orders("first", "10.0.0.2", 0) == [("signal", 10)]
        await desk.ended("first", 0, End(0))
        await desk.ended("first", 1, End(0))
        assert await soon(moving) is True
        assert (await desk.look()).moving == "there is room for 3"
        await desk.begin(SECOND)
        assert await soon(desk.take("a", 2)) == "leave"
        assert await soon(desk.take("b", 3)) == SECOND
        assert (await desk.look()).moving is None

    asyncio.run(story())


def test_ranks_that_do_not_save_in_time_hold_nobody_up_for_ever() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.begin(FIRST)
        await desk.take("a", 1)
        assert await soon(desk.move(None, "why", 10, 0.1)) is False

    asyncio.run(story())


def test_when_it_closes_everybody_goes_home() -> None:
    async def story() -> None:
        desk = Desk()
        await desk.begin(FIRST)
        await desk.take("a", 1)
        waiting = await waits(desk.orders("first", "10.0.0.2", 0))
        taking = await waits(desk.take("a", 1))
        await desk.close()
        assert await soon(taking) == "over"
        assert await soon(waiting) == [("end", 0)]
        assert await desk.take("b", 1) == "over"

    asyncio.run(story())


def test_a_rank_on_a_leash_is_killed_with_its_worker(tmp_path: Path) -> None:
    rank = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    worker = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-m', 'cluster.leash', str(os.getpid()), sys.executable, '-c', {rank!r}]); "
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", worker])
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_rank_whose_worker_is_gone_already_does_not_begin() -> None:
    ended = subprocess.run([sys.executable, "-m", "cluster.leash", str(os.getpid() + 1), "true"], check=False)
    assert ended.returncode == 1
