"""Truncation: which tokens of an example that is too long are left out. Never quietly: `encode` counts every one."""

from collections.abc import Sequence

from data.tasks.part import Part


def kept_tokens(parts: Sequence[Part], lengths: Sequence[int], room: int, truncate: str) -> list[int] | None:
    """How many tokens of each part stay (from its beginning) so that `room` holds all; None: it can't be done.

    A text that is cut keeps at least one token. Of a chat, whole turns go, the oldest user and assistant first; its
    system prompt and its last turns of user and assistant stay.

    Args:
        lengths: tokens of each part.
        truncate: the task's setting.
    """
    kept = list(lengths)
    over = sum(lengths) - room
    if over <= 0:
        return kept
    if truncate == "no":
        return None
    if truncate == "first_turns":
        return _later_turns(parts, kept, room)
    cuttable = [number for number, part in enumerate(parts) if part.cuttable]
    if truncate == "longest":
        first, second = cuttable
        left = kept[first] + kept[second] - over
        if left < 2:
            return None
        half = (left + 1) // 2
        kept[first] = min(kept[first], max(half, left - kept[second]))
        kept[second] = left - kept[first]
        return kept
    number = next(number for number in cuttable if parts[number].cuttable == truncate)
    kept[number] -= over
    return kept if kept[number] >= 1 else None


def _later_turns(parts: Sequence[Part], kept: list[int], room: int) -> list[int] | None:
    turns: list[list[int]] = []  # the parts of each; what ends the whole belongs to the last
    for number, part in enumerate(parts):
        if not turns or part.field != parts[number - 1].field:
            turns.append([])
        turns[-1].append(number)
    first = 1 if parts[0].field == "system" else 0
    while sum(kept) > room:
        if len(turns) - first <= 3:  # user and assistant, or these and a user's last word
            return None
        for number in turns[first] + turns[first + 1]:
            kept[number] = 0
        first += 2
    return kept
