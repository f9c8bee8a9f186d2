"""In a process started with LUBAN_TEST_LEAP=SECONDS:STEP, `time.time` leaps when it has been asked so often (a step of
a tiny run asks a few times); monotonic clocks don't move."""

import os
import time

if os.environ.get("LUBAN_TEST_LEAP"):
    LEAP, AFTER = (int(part) for part in os.environ["LUBAN_TEST_LEAP"].split(":"))
    plain, asked = time.time, [0]

    def leaping() -> float:
        asked[0] += 1
        return plain() + (LEAP if asked[0] > 3 * AFTER else 0)

    time.time = leaping
