"""Which language a document is in.

The script decides where it can: kana is Japanese, Hangul Korean, Han without kana Chinese, which also holds for the
classical Chinese that statistics take for Japanese. Else resiliparse looks first (116 MB/s), and py3langid (5.7 MB/s,
98 % right) where two languages are about as near, as German and Luxembourgish are; both at the first few thousand
characters alone.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from data.clean.measured import Measured
from data.errors import UserError

UNKNOWN = "und"
"""What a text without enough letters is called, as ISO 639-2 has it."""
_LOOKED_AT = 4000
_MIN_LETTERS = 8
_SURE = 0.1
"""How much farther the second nearest language is, at least, where resiliparse is taken at its word."""
_SURE_CHARACTERS = 400
"""Characters below which it isn't."""
_KANA, _HANGUL, _HAN = (0x3041, 0x30FF), (0xAC00, 0xD7A3), (0x3400, 0x9FFF)


def identify(text: str) -> str:
    """The language of a text as ISO 639-1, or `UNKNOWN`.

    Raises:
        UserError: resiliparse or py3langid is not installed.
    """
    quick, thorough = _identifiers()
    part = text[:_LOOKED_AT]
    seen = Measured(part)
    if seen.letters < _MIN_LETTERS:
        return UNKNOWN
    if (script := _by_script(seen)) is not None:
        return script
    if len(part) >= _SURE_CHARACTERS:
        nearest = quick(part, n_results=2)
        if len(nearest) == 1 or (len(nearest) == 2 and nearest[1][1] >= (1 + _SURE) * nearest[0][1]):
            return nearest[0][0]
    return str(thorough(part)[0])


def _by_script(seen: Measured) -> str | None:
    if seen.codes.dtype == np.uint8:
        return None

    def count(span: tuple[int, int]) -> int:
        return int(((seen.codes >= span[0]) & (seen.codes <= span[1])).sum())

    kana, hangul, han = count(_KANA), count(_HANGUL), count(_HAN)
    if 3 * (kana + hangul + han) < seen.letters:
        return None
    if hangul > kana + han:
        return "ko"
    return "ja" if 10 * kana > han else "zh"


@lru_cache(maxsize=1)
def _identifiers() -> tuple[Any, Any]:
    try:
        import py3langid
        from resiliparse.parse.lang import detect_fast
    except ImportError as error:
        raise UserError(
            f"clean.language: identify needs {error.name}, which is not installed: pip install 'luban[web]', or name "
            "the language of your sources, such as clean.language=en"
        ) from None
    return detect_fast, py3langid.classify
