"""The `clean` section of a dataset recipe: every rule's setting, and presets that set them for a kind of text.

A preset only fills in what the recipe leaves out, so the resolved recipe states each value and a rule can be
switched off, or tightened, by itself. The shapes of rules, and the order they run in, are in `document.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.settings import Fixed, Section

Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[int, Field(ge=1)]

PRESETS: dict[str, dict[str, Any]] = {
    "general": {},
    "off": {
        "nfc": False,
        **dict.fromkeys(
            (
                "min_characters", "max_characters", "max_line_characters", "max_mean_line_characters", "min_letters",
                "max_digits", "max_table_lines", "max_repeated_lines", "max_control_characters",
                "max_replacement_characters",
            )
        ),
    },
}  # fmt: skip


class Clean(Section):
    """What is changed in documents, and which are dropped for what they are. null (or an empty list) switches a rule
    off; what each one does is counted under its name."""

    preset: Fixed[Literal["general", "off"]] = "general"
    """Fills in every setting below that the recipe doesn't state. general: safe for any text and code; off: nothing
    is changed or dropped."""
    nfc: Fixed[bool] = True
    """Line ends become newlines and characters their composed form: `nfc`."""
    min_characters: Fixed[Limit | None] = 20
    """Fewer characters other than white space than this: `too_short`."""
    max_characters: Fixed[Limit | None] = 8_000_000
    """More characters than this: `too_long`."""
    max_line_characters: Fixed[Limit | None] = 100_000
    """A line with more characters than this (minified code, embedded data): `long_line`."""
    max_mean_line_characters: Fixed[Limit | None] = 5_000
    """More characters a non-empty line on average than this: `long_lines`. A paragraph a line is well below."""
    min_letters: Fixed[Share | None] = 0.4
    """A smaller share of letters of any script among the characters that aren't white space: `few_letters`."""
    max_digits: Fixed[Share | None] = 0.3
    """A larger share of digits among the characters that aren't white space: `many_digits`."""
    max_table_lines: Fixed[Share | None] = 0.6
    """In a document of 50 lines or more, a larger share of lines that hold only numbers, byte escapes and
    punctuation: `data_table`."""
    max_repeated_lines: Fixed[Share | None] = 0.6
    """In a document of 20 lines or more, a larger share of its characters in repetitions of earlier lines:
    `repeated_lines`."""
    max_control_characters: Fixed[Share | None] = 0.001
    """A larger share of control characters (tab, newline and form feed aside): `control_characters`."""
    max_replacement_characters: Fixed[Share | None] = 0.001
    """A larger share of U+FFFD, left where a decoder gave up: `broken_encoding`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "general")
        return {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given
