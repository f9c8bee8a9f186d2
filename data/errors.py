"""The one exception for a person's mistake.

Every command turns it into a single message on stderr and exit code 2; a supervisor never retries it.
Anything else that escapes is a fault of the machine or of Luban, and keeps its traceback.
"""


class UserError(Exception):
    """What was wrong, the value seen, and how to mend it, in a sentence or two."""
