"""Documents, streamed from where they are: files, folders, tables, web pages, archives, earlier datasets, URLs.

Each module here is one idea: `files` finds and opens, `compression` and `encodings` turn bytes into text, `texts`,
`tables`, `squad`, `web`, `tars` are the formats, `rows` makes documents of rows, `sampling` says how much is taken.
Everything streams: what is in memory is one document and some buffers, whatever the corpus.
"""

from collections.abc import Callable, Iterator, Sequence

from data.corpus.document import Document
from data.corpus.files import InputFile, input_files
from data.corpus.fingerprint import fingerprint, stamps
from data.corpus.rows import aligned_documents, row_documents, squad_documents
from data.corpus.sampling import capped, sampled
from data.corpus.tars import tar_file
from data.corpus.texts import cut_file, whole_file
from data.corpus.web import html_file, ready, warc_file
from data.errors import UserError
from data.source import TABLES, Source

__all__ = ["Document", "InputFile", "documents", "fingerprint", "input_files", "pending", "ready", "stamps"]

_READERS: dict[str, Callable[[Source, InputFile], Iterator[Document]]] = {
    "stdlib": whole_file,
    "folder": whole_file,
    "text": cut_file,
    **dict.fromkeys(TABLES, row_documents),
    "squad": squad_documents,
    "html": html_file,
    "warc": warc_file,
    "webdataset": tar_file,
}


def documents(sources: Sequence[Source]) -> Iterator[Document]:
    """Every document of every source, in the order of the sources and then of the ids. Raises as `pending`."""
    return map(ready, pending(sources))


def pending(sources: Sequence[Source]) -> Iterator[Document]:
    """The same, but web pages come as they were read: `ready` takes their text out, wherever it is called.

    Raises:
        UserError: a path that isn't there, a folder where nothing matches, a source without a document, input that
            can't be read or lacks a column, a bad row (naming file and line), a text file that isn't text.
    """
    for source in sources:
        seen = False
        found = sampled(source, _all(source))
        if source.capped:
            found = capped(source, map(ready, found))
        for document in found:
            seen = True
            yield document
        if not seen:
            raise UserError(f"source {source.label}: there is no document in {source.path}")


def _all(source: Source) -> Iterator[Document]:
    if source.kind == "dataset":
        yield from _from_dataset(source)
        return
    if source.kind == "lines":
        yield from aligned_documents(source, input_files(source))
        return
    for file in input_files(source):
        yield from _READERS[source.kind](source, file)


def _from_dataset(source: Source) -> Iterator[Document]:
    from data.dataset import load_dataset

    dataset = load_dataset(source.local)
    if dataset.kind != "text":
        raise UserError(f"source {source.label}: {dataset.folder} holds examples; only a dataset of text is a source")
    tokenizer = dataset.tokenizer()
    if tokenizer.losses:
        raise UserError(
            f"source {source.label}: the tokenizer of {dataset.folder} {', '.join(tokenizer.losses)}, so its documents "
            "can't be read back as they were. Use what that dataset was built from."
        )
    for row, tokens in dataset.documents(source.split):
        yield Document(row.id, row.source, tokenizer.decode_bytes(tokens).decode())
