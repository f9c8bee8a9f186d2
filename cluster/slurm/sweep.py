"""One setting in several values: a run for each, all handed over to Slurm as one job array.

`--array optimizer.lr=[1e-3,2e-3]` makes the runs NAME-0 and NAME-1. Each has a folder, a record and a life of its own,
and is asked about, stopped and resumed like any other run; what they share is the batch script.
"""

from copy import deepcopy
from typing import Any

from data.errors import UserError
from data.settings import apply


def elements(tree: dict[str, Any], array: str, name: str) -> list[dict[str, Any]]:
    """The recipes of the elements, as trees of settings.

    Args:
        tree: what they share.
        array: `key=[value, value, ...]`.
        name: what their names begin with.

    Raises:
        UserError: it isn't written like that, or varies what all elements of a job array share.
    """
    key = array.partition("=")[0]
    found: Any = apply({}, [array])
    for part in key.split("."):
        found = found[part]
    if not isinstance(found, list) or not found:
        raise UserError(f"--array {array}: write the values as a list, such as optimizer.lr=[1e-3,2e-3]")
    if key == "name" or key.partition(".")[0] == "launch":
        raise UserError(f"--array {array}: the elements of a job array share {key}; vary something else")
    trees = []
    for index, value in enumerate(found):
        one = apply(deepcopy(tree), [f"{key}=null", f"name={name}-{index}"])
        *parents, leaf = key.split(".")
        node = one
        for parent in parents:
            node = node[parent]
        node[leaf] = value
        trees.append(one)
    return trees
