"""The short form of `make chaos`: some of its faults, once each. The others have tests of their own."""

from pathlib import Path

import pytest

from tests.chaos.runs import hurt, table, unhurt
from tests.conftest import CommandLine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def home(luban: CommandLine) -> CommandLine:
    """The command line, with a run that nothing happens to."""
    unhurt(luban)
    return luban


@pytest.mark.parametrize("fault", ["kill during a save", "jump the clock"])
def test_a_run_that_is_hurt_ends_as_the_one_that_was_not(home: CommandLine, fault: str) -> None:
    result = hurt(home, fault, 0)
    print(table([result]))
    assert result["problems"] == []
    assert result["rows lost"] == result["rows repeated"] == 0
    assert result["attempts"] > 1
    assert Path(home.run(result["name"])).is_dir()
