"""How much of a source is taken: a share by hash, a cap in order.

A share (`weight`) is of the documents, each drawn by a hash of its id and of nothing else: the same documents at any
number of workers, whatever else the recipe says, and those of a smaller weight are among those of a larger. A cap ends
the reading: the first so many that the share left.
"""

from collections.abc import Iterable, Iterator

from data.corpus.document import Document
from data.corpus.source import Source


def sampled(source: Source, documents: Iterable[Document]) -> Iterator[Document]:
    """The documents; those outside the share without what they hold, as `not_sampled`."""
    if source.weight == 1:
        yield from documents
        return
    import xxhash

    limit = source.weight * 2.0**64
    for document in documents:
        if document.fault or xxhash.xxh3_64_intdigest(f"weight\0{document.id}".encode()) < limit:
            yield document
        else:
            yield Document(document.id, document.source, None, document.bytes, "not_sampled")


def capped(source: Source, documents: Iterable[Document]) -> Iterator[Document]:
    """The documents until those without a fault reach `max_documents` or would exceed `max_bytes`."""
    count = size = 0
    for document in documents:
        if document.fault is None:
            count, size = count + 1, size + document.bytes
            if source.max_bytes is not None and size > source.max_bytes:
                return
        yield document
        if count == source.max_documents:
            return
