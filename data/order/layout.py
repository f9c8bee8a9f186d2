"""How the tokens of a split's shards become rows: a row's length is the objective's to ask, not the dataset's."""

from collections.abc import Iterable
from dataclasses import dataclass

from data.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How the tokens of a split's shards become rows; arrays have one entry a shard.

    Text is chopped: row j of a shard starts at phase + j * stride and holds stride + overlap tokens; overlapping by
    one, each token is the label of the one before it once. Examples are one row each (`stride` 0). Packed rows are
    those of a plan (`packing.py`).
    """

    fingerprint: str
    """Digest of the shards it describes."""
    stride: int
    """Tokens from one row to the next; 0: a row is a document, or one of a plan."""
    rows: tuple[int, ...]
    """Rows of each shard, the same in every epoch."""
    tail: tuple[int, ...]
    """Tokens of each shard that an epoch leaves unread; the phase moves over them from epoch to epoch."""
    plan: str = ""
    """Digest of the packing plans whose rows these are; empty: none."""
    plan_length: int = 0
    """Tokens that a row of the plans has room for."""
    overlap: int = 1
    """Tokens of text that a row shares with the next."""

    @property
    def total(self) -> int:
        """Rows of one epoch."""
        return sum(self.rows)

    @classmethod
    def chopped(cls, fingerprint: str, tokens: Iterable[int], context: int, overlap: int = 1) -> "Layout":
        """Rows of context + overlap tokens, a new one every `context`; a row never straddles two shards.

        Raises:
            UserError: no shard holds a whole row.
        """
        held = tuple(tokens)
        rows = tuple(max(0, count - overlap) // context for count in held)
        if not sum(rows):
            raise UserError(
                f"a context of {context} tokens needs shards of at least {context + overlap}, and the longest of "
                f"{len(held)} has {max(held, default=0)}: lower model.context or add text"
            )
        tail = tuple(max(0, count - overlap) - mine * context for count, mine in zip(held, rows, strict=True))
        return cls(fingerprint, context, rows, tail, overlap=overlap)

    @classmethod
    def documents(cls, fingerprint: str, documents: Iterable[int]) -> "Layout":
        """One row a document. Raises UserError where there is none."""
        rows = tuple(documents)
        if not sum(rows):
            raise UserError("the split holds no examples")
        return cls(fingerprint, 0, rows, (0,) * len(rows))

    @classmethod
    def packed(cls, fingerprint: str, rows: Iterable[int], plan: str, length: int) -> "Layout":
        """The rows of packing plans, so many a shard. Raises UserError where there is none.

        Args:
            plan: digest of the plans.
            length: tokens that a row has room for.
        """
        held = tuple(rows)
        if not sum(held):
            raise UserError("the split holds nothing to pack")
        return cls(fingerprint, 0, held, (0,) * len(held), plan, length)

    def row_length(self, longest: int) -> int:
        """Tokens that a row has room for, where a document that is a row may have `longest`."""
        return self.stride + self.overlap if self.stride else self.plan_length or longest

    def describe(self) -> dict[str, object]:
        """What of it fixes an order."""
        return {"fingerprint": self.fingerprint, "stride": self.stride, "overlap": self.overlap, "plan": self.plan}
