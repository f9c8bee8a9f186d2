"""WebDataset tars of text: a sample is a document.

webdataset reads the members and groups them into samples. A tar that is cut between two members looks whole to it
(217 samples and no error, measured), so here a tar must end as the format says: with two empty blocks.
"""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

from data.corpus.document import Document
from data.corpus.encodings import decode
from data.corpus.ending import Ending
from data.corpus.files import InputFile, unpacked
from data.corpus.rows import BadRowError, missing, text_of
from data.corpus.source import Source
from data.errors import UserError

_BLOCK = 512
_TAR_END = bytes(2 * _BLOCK)


def tar_file(source: Source, file: InputFile) -> Iterator[Document]:
    """The samples of a tar in their order.

    Raises:
        UserError: cut, not a tar, two members of one name, a sample without text (unless they are to be dropped).
    """
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    with unpacked(source, file) as packed:
        ending = Ending(packed, len(_TAR_END))
        members = ({**member, "__url__": file.id} for member in tar_file_iterator(ending))  # pyright: ignore
        try:
            for number, sample in enumerate(group_by_keys(members), 1):
                yield _document(source, file, sample, number)
        except (tarfile.TarError, ValueError) as error:
            raise UserError(f"source {source.label}: cannot read {file.shown}: {error.args[0]}") from None
        ending.finish()
        if ending.size % _BLOCK or ending.last != _TAR_END:
            raise EOFError(f"it ends after {ending.size:,} bytes without the mark of a tar's end: it is cut")


def _document(source: Source, file: InputFile, sample: dict[str, Any], number: int) -> Document:
    key = sample["__key__"]
    id_ = f"{file.id}:{key}"
    members = {name: held for name, held in sample.items() if not name.startswith("__")}
    size = sum(map(len, members.values()))
    if size > source.max_document_bytes:
        return Document(id_, source.label, None, size=size, fault="too_large")
    try:
        text = _text(source, members)
    except BadRowError as error:
        if source.on_bad_row == "error":
            raise UserError(f"source {source.label}: {file.shown}: sample {number} ({key}) {error}") from None
        return Document(id_, source.label, None, size=size, fault="bad_row")
    return Document(id_, source.label, text, size=size, fault="not_text" if text is None else None)


def _text(source: Source, members: dict[str, bytes]) -> str | None:
    if "txt" in members:
        return decode(members["txt"], source.encoding)
    if "json" not in members:
        raise BadRowError(f"has neither a .txt nor a .json member, but {', '.join(f'.{name}' for name in members)}")
    try:
        values = json.loads(members["json"])
    except UnicodeError:
        return None
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"has a .json member that isn't JSON: {error}") from None
    if not isinstance(values, dict):
        raise BadRowError(missing(source.text_field, ()))
    return text_of(values, source.text_field)
