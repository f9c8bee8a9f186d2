"""Generated texts against references: BLEU and chrF by sacrebleu, ROUGE by rouge-score.

Texts of mostly Chinese or Japanese characters are cut into characters: sacrebleu's tokenizer `zh`, and a character a
token for ROUGE, whose own tokenizer would drop them all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WORD = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class TextScores:
    """All from 0 to 100."""

    bleu: float
    chrf: float
    rouge1: float | None
    """None, as the two others: rouge-score isn't installed."""
    rouge2: float | None
    rouge_l: float | None
    tokenizer: str
    """sacrebleu's, for BLEU."""


def text_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Corpus BLEU (arXiv:1804.08771) and chrF2, and the mean F1 of ROUGE-1, -2 and -L.

    Args:
        texts: made ones.
        references: of each text, one or several; ROUGE counts the best.
    """
    import sacrebleu

    whole = "".join(each[0] for each in references)
    chinese = len(_CHINESE.findall(whole)) > len(whole) / 4
    most = max(len(each) for each in references)
    # sacrebleu takes a list for each place; None: this text has no further reference
    columns: list[Any] = [[each[place] if place < len(each) else None for each in references] for place in range(most)]
    cut = "zh" if chinese else "13a"
    bleu = sacrebleu.corpus_bleu(list(texts), columns, tokenize=cut).score
    chrf = sacrebleu.corpus_chrf(list(texts), columns).score
    return TextScores(bleu, chrf, *_rouge(texts, references, chinese), cut)


def _rouge(
    texts: Sequence[str], references: Sequence[Sequence[str]], chinese: bool
) -> tuple[float | None, float | None, float | None]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return None, None, None
    words = _Words() if chinese else None
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=not chinese, tokenizer=words)
    found = [scorer.score_multi(list(each), text) for text, each in zip(texts, references, strict=True)]

    def mean(name: str) -> float:
        return 100 * sum(each[name].fmeasure for each in found) / len(found)

    return mean("rouge1"), mean("rouge2"), mean("rougeL")


class _Words:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Chinese characters, and words between them."""
        return _WORD.findall(text.lower())
