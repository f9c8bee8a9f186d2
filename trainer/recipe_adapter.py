"""The recipe's `adapter`: few new weights that learn in place of all the old ones."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data.errors import UserError
from data.settings import Fixed, Section

_ONLY = {
    "rank": ("lora",), "alpha": ("lora",), "dropout": ("lora",), "targets": ("lora",), "tokens": ("prompt",),
    "source": ("lora", "prompt"),
}  # fmt: skip


class Adapter(Section):
    """Parameter-efficient fine-tuning: the model's own weights are frozen, and the adapter's learn."""

    kind: Fixed[Literal["none", "lora", "prompt"]] = "none"
    """lora: low-rank updates of the model's projections (arXiv:2106.09685); prompt: learned vectors before each input
    (arXiv:2104.08691). A head that the model has gained for the task (its classes, say) learns too."""
    rank: Fixed[int] = Field(default=8, ge=1)
    """lora: rank of an update."""
    alpha: Fixed[float] = Field(default=16.0, gt=0)
    """lora: an update is scaled by alpha / rank."""
    dropout: Fixed[float] = Field(default=0.0, ge=0, lt=1)
    """lora: probability of dropping a feature of what enters an update, in training."""
    targets: Fixed[tuple[str, ...]] = ()
    """lora: the projections that get an update, by their names or shell patterns over them: `q_proj`,
    `model.layers.5.*`. None: each projection of the blocks."""
    tokens: Fixed[int] = Field(default=16, ge=1)
    """prompt: virtual tokens before each input; the context holds so many tokens fewer."""
    source: Fixed[str | None] = None
    """A folder in PEFT's format whose weights the adapter begins with; its kind, rank and so on must be these. null: it
    begins where it changes nothing (lora), or as tokens drawn from the vocabulary (prompt)."""

    @model_validator(mode="after")
    def _settings_fit_kind(self) -> Self:
        for setting, kinds in _ONLY.items():
            if self.kind not in kinds and getattr(self, setting) != type(self).model_fields[setting].default:
                raise ValueError(f"{setting} means something only with kind {' or '.join(kinds)}, not {self.kind}")
        return self

    @property
    def virtual_tokens(self) -> int:
        """Tokens that it puts before each input."""
        return self.tokens if self.kind == "prompt" else 0

    @property
    def scale(self) -> float:
        """By what a low-rank update is multiplied."""
        return self.alpha / self.rank

    def described(self) -> dict[str, Any]:
        """What decides its weights' names, shapes and meaning."""
        return {
            name: getattr(self, name)
            for name, kinds in _ONLY.items()
            if self.kind in kinds and name not in ("source", "dropout")
        } | {"kind": self.kind}


def refuse_other(before: Adapter, now: Adapter, origin: str) -> None:
    """Raise UserError unless an ancestor's adapter can go on as `now`, or be merged."""
    if before.kind == "none" or before.described() == now.described() or (before.kind, now.kind) == ("lora", "none"):
        return
    if now.kind == "none":
        raise UserError(f"{origin} has learned a prompt, which can't be merged into weights: leave adapter.kind out")
    raise UserError(
        f"{origin} has an adapter of {_told(before)}, and this recipe wants one of {_told(now)}: leave the adapter's "
        "settings out to go on with it, or merge it first (adapter.kind=none)"
    )


def _told(adapter: Adapter) -> str:
    """What decides its weights, as the settings are written."""
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in adapter.described().items()}
    return ", ".join(f"{name}={value}" for name, value in sorted(told.items()))
