"""One setting in several values: which runs that makes."""

import pytest

from cluster.slurm.sweep import elements
from data.errors import UserError


def test_each_value_makes_a_run_with_a_name_and_everything_else_the_same() -> None:
    tree = {"name": "first", "optimizer": {"clip": 0.5}, "train": {"steps": 9}}
    found = elements(tree, "optimizer.lr=[1e-3, 2e-3]", "first")
    assert found == [
        {"name": f"first-{index}", "optimizer": {"clip": 0.5, "lr": lr}, "train": {"steps": 9}}
        for index, lr in enumerate((1e-3, 2e-3))
    ]
    assert tree == {"name": "first", "optimizer": {"clip": 0.5}, "train": {"steps": 9}}


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ("optimizer.lr=1e-3", "write the values as a list"),
        ("optimizer.lr=[]", "write the values as a list"),
        ("optimizer.lr", "write a setting as key=value"),
        ("launch.ranks=[1, 2]", "the elements of a job array share launch.ranks"),
        ("name=[a, b]", "share name"),
    ],
)
def test_what_is_no_sweep_is_refused(array: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        elements({}, array, "first")
