"""Whether a run that has read its first rows in one order may go on in another: only if it is a continuation."""

from collections.abc import Mapping
from typing import Any

SAME = {"version": "version of the order", "seed": "seed", "lanes": "data.lanes", "block": "block of a mixture"}


def departure(then: Mapping[str, Any], now: Mapping[str, Any], consumed: int) -> str | None:
    """Why a run that has consumed so many positions in one order can't go on in another; None: it can.

    What lies ahead may change: stages that have not begun, and new ones. Sources are told apart by their shards, their
    names are free.

    Args:
        then, now: as `Order.describe` says.
    """
    for name, words in SAME.items():
        if then.get(name) != now[name]:
            return f"{words} {then.get(name)} then, {now[name]} now"
    begun = [[stage for stage in said["stages"] if stage["start"] < max(consumed, 1)] for said in (then, now)]
    for number, (old, new) in enumerate(zip(*begun, strict=False)):
        if why := _other_stage(f"stage {number}", old, new):
            return why
    if len(begun[0]) != len(begun[1]):
        longer = max(begun, key=len)[min(map(len, begun))]["start"]
        known = "began then" if len(begun[0]) > len(begun[1]) else "begins now"
        return f"a stage {known} at position {longer:,}, and the run has read {consumed:,}"
    return None


def _other_stage(words: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    for name in ("start", "window"):
        if old[name] != new[name]:
            return f"{name} of {words} was {old[name]}, and is {new[name]} now"
    before, after = ({held["shards"]: (name, held) for name, held in one["sources"].items()} for one in (old, new))
    for shards in sorted(before.keys() ^ after.keys()):
        name = (before.get(shards) or after[shards])[0]
        held = [stage["sources"][name]["shards"][:12] for stage in (old, new) if name in stage["sources"]]
        if len(held) > 1:
            return f"source {name} held the shards {held[0]}, and holds {held[1]} now: restore them"
        verb = "read" if shards in before else "did not read"
        return f"{words}, from position {old['start']:,}, {verb} source {name}"
    for shards, (source, held) in before.items():
        now_held = after[shards][1]
        for name in sorted(held.keys() | now_held.keys()):
            a, b = held.get(name), now_held.get(name)
            if a != b:
                return f"{name} of source {source} in {words} was {a}, and is {b} now"
    return None
