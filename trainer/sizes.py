"""Every size that decides how much memory a rank holds, in one place and without torch.

The code that allocates and the arithmetic of `luban plan` read the same names, so that neither can drift from the
other; the plan answers in a fraction of the second that torch takes to load. Each was chosen where it is used.
"""

GRADIENT_BUCKET = 50_000_000
"""Most elements of one bucket of gradients on their way; DeepSpeed's default would reserve 2 GB a rank."""

LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO 3 may keep gathered, and the distance within which it doesn't let go of what is used again."""
PREFETCH = 50_000_000
"""Elements that ZeRO 3 gathers ahead."""
PERSISTENT = 100_000
"""Parameters of fewer elements stay whole on every rank under ZeRO 3."""
SUB_GROUP = 1_000_000_000
"""Elements that ZeRO 3 updates as one."""

CHUNK_LOGITS = {"cpu": 2**22, "cuda": 2**28}
"""Logits held at once, by device: 16 MB in fp32 on a CPU (2^17 is 20 % slower, 2^25 no faster), 1 GB on a GPU."""
LEAST_CHUNK_ROWS = 16
"""Tokens whose logits are held at once, however large the vocabulary."""
EVALUATION_LOGITS = 64 * 2**20
"""Most logits of one forward of an evaluation, in elements (256 MiB in fp32)."""

EXACT_CHUNK = 512
"""Elements of one parameter whose squares `exact: any` sums as one; a power of two."""
EXACT_BUCKET = 2**22
"""Elements sent, and received, by a rank in one exchange of `exact: any`."""

SAVED_FLOATS = 3
"""fp32 numbers that a checkpoint holds for each element that trains: weight and two moments."""

MOST_ROWS = 16
"""Rows of one forward where the recipe leaves it open."""
