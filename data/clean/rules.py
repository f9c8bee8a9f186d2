"""The `clean` section of a dataset recipe: every rule's setting, and presets that set them for a kind of text.

A preset only fills in what the recipe leaves out, so the resolved recipe states each value and a rule can be
switched off, or tightened, by itself. What the rules do is in the files beside this one, their order in `document.py`.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from data.settings import Fixed, Section

Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[int, Field(ge=1)]
Pii = Literal["secret", "email", "ip", "phone"]
Line = Literal["lorem_ipsum", "javascript", "cookies", "rights", "policy", "menu", "running_head"]

LINES: tuple[Line, ...] = get_args(Line)
_REPETITION = {
    "max_repeated_lines": 0.2,
    "max_line_copies": 0.3,
    "max_repeated_paragraphs": 0.2,
    "max_paragraph_copies": 0.3,
    "max_top_ngram": (0.2, 0.18, 0.16),
    "max_copied_ngrams": (0.15, 0.14, 0.13, 0.12, 0.11, 0.1),
}
PRESETS: dict[str, dict[str, Any]] = {
    "general": {},
    "web": {
        "mojibake": True,
        "remove_controls": True,
        "pii": ("secret", "email", "ip", "phone"),
        "remove_lines": LINES,
        "max_line_characters": 20_000,
        "max_curly_brackets": 0.005,
        "min_sentences": 3,
        "min_words": 50,
        "max_words": 100_000,
        "mean_word_characters": (3, 10),
        "max_symbols": 0.1,
        "max_bullets": 0.9,
        "max_ellipses": 0.3,
        "min_words_with_letters": 0.8,
        "min_stop_words": 2,
        **_REPETITION,
    },
    "books": {
        "mojibake": True,
        "remove_controls": True,
        "pii": ("secret", "email"),
        "remove_lines": ("running_head",),
        "max_symbols": 0.1,
        "max_ellipses": 0.3,
        "max_top_ngram": _REPETITION["max_top_ngram"],
        "max_copied_ngrams": tuple(2 * limit for limit in _REPETITION["max_copied_ngrams"]),
    },
    "code": {
        "pii": ("secret", "email"),
        "max_line_characters": 1000,
        "max_mean_line_characters": 100,
        "min_letters": 0.25,
        "max_digits": 0.5,
        "drop_generated": True,
    },
    "off": {
        "nfc": False,
        "min_characters": None,
        "max_characters": None,
        "max_line_characters": None,
        "max_mean_line_characters": None,
        "min_letters": None,
        "max_digits": None,
        "max_table_lines": None,
        "max_repeated_lines": None,
        "max_control_characters": None,
        "max_replacement_characters": None,
    },
}
"""What each preset sets otherwise than general, whose values are the defaults below."""


class Clean(Section):
    """What is changed in documents, and which are dropped for what they are. null (false, an empty list) switches a
    rule off; what each one does is counted under its name."""

    preset: Fixed[Literal["general", "web", "books", "code", "off"]] = "general"
    """Fills in every setting below that the recipe doesn't state. general: safe for any text and code; web: pages, by
    the rules of Gopher and C4; books: prose and verse; code: source files; off: nothing is changed or dropped."""
    language: Fixed[Annotated[str, Field(pattern=r"^(identify|[a-z]{2,8})$")] | None] = None
    """null: not recorded; identify: looked for in each document (ISO 639-1, und where there is nothing to go by); any
    other word is what all documents are said to be in, such as zh, or code."""
    nfc: Fixed[bool] = True
    """Line ends become newlines and characters their composed form: `nfc`."""
    mojibake: Fixed[bool] = False
    """Lines that look like UTF-8 decoded as something else are decoded rightly, by ftfy: `mojibake`."""
    remove_controls: Fixed[bool] = False
    """Control characters other than tab, newline and form feed are taken out, and byte order marks: `controls`."""
    pii: Fixed[tuple[Pii, ...]] = ()
    """What is masked, by [SECRET], [EMAIL], [IP] and [PHONE]: keys and tokens, mail addresses, public IP addresses,
    telephone numbers: `pii_email` and so on."""
    remove_lines: Fixed[tuple[Line, ...]] = ()
    """Lines taken out: notices on JavaScript, cookies, rights and policies, menus, heads and feet of pages:
    `line_menu` and so on. All seven: lorem_ipsum, javascript, cookies, rights, policy, menu, running_head."""
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
    max_control_characters: Fixed[Share | None] = 0.001
    """A larger share of control characters (tab, newline and form feed aside): `control_characters`."""
    max_replacement_characters: Fixed[Share | None] = 0.001
    """A larger share of U+FFFD, left where a decoder gave up: `broken_encoding`."""
    drop_generated: Fixed[bool] = False
    """The first 1,000 characters say that a program wrote the file: `generated`."""
    max_curly_brackets: Fixed[Share | None] = None
    """A larger share of opening curly brackets among the characters that aren't white space: `curly_brackets`. C4
    drops a page for the first one."""
    min_sentences: Fixed[Limit | None] = None
    """Fewer ends of sentences than this: `few_sentences`."""
    min_words: Fixed[Limit | None] = None
    """Fewer words than this: `few_words`. A Chinese or Japanese character counts as one."""
    max_words: Fixed[Limit | None] = None
    """More words than this: `many_words`."""
    mean_word_characters: Fixed[tuple[float, float] | None] = None
    """Words of fewer, or more, characters than these on average: `word_length`. Only in a text mostly of letters whose
    words are parted by spaces."""
    max_symbols: Fixed[Annotated[float, Field(ge=0)] | None] = None
    """More number signs a word than this, or more ellipses: `symbols`."""
    max_bullets: Fixed[Share | None] = None
    """A larger share of lines that begin with a bullet: `bullets`."""
    max_ellipses: Fixed[Share | None] = None
    """A larger share of lines that end with an ellipsis: `ellipses`."""
    min_words_with_letters: Fixed[Share | None] = None
    """A smaller share, of what stands between white space, that holds a letter: `not_words`."""
    min_stop_words: Fixed[Annotated[int, Field(ge=1, le=8)] | None] = None
    """Fewer of the, be, to, of, and, that, have, with than this: `few_stop_words`. Only in English, which, where
    languages aren't looked for, is any text of mostly Latin letters."""
    max_repeated_lines: Fixed[Share | None] = 0.6
    """In a document of 20 lines or more, a larger share of its characters in repetitions of earlier lines:
    `repeated_lines`."""
    max_line_copies: Fixed[Share | None] = None
    """In a document of 20 lines or more, a larger share of lines that were there before: `line_copies`."""
    max_repeated_paragraphs: Fixed[Share | None] = None
    """A larger share of characters in paragraphs that were there before: `repeated_paragraphs`."""
    max_paragraph_copies: Fixed[Share | None] = None
    """A larger share of paragraphs that were there before: `paragraph_copies`."""
    max_top_ngram: Fixed[Annotated[tuple[Share, ...], Field(min_length=1)] | None] = None
    """A larger share of characters in the most frequent run of 2 words, 3, 4 and so on: `top_ngram`."""
    max_copied_ngrams: Fixed[Annotated[tuple[Share, ...], Field(min_length=1)] | None] = None
    """A larger share of characters in runs of 5 words, 6, 7 and so on that were there before: `copied_ngrams`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", "general")
        return {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given
