"""One source of a dataset: where documents lie, how they are read, how many of them are wanted.

Sources are told apart by name. What their documents are read with is in `data/corpus/`.
"""

import os
import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data.errors import UserError
from data.remote.credentials import refuse_secrets
from data.remote.origin import is_remote
from data.remote.patience import Patience
from data.settings import Fixed, Free, Section

Count = Annotated[int, Field(ge=0)]
Place = Annotated[str, BeforeValidator(lambda held: os.fspath(held) if isinstance(held, os.PathLike) else held)]
TABLES = ("jsonl", "json", "csv", "tsv", "parquet")
"""Kinds of named columns, a row a document."""
_SEVERAL = ("folder", "html", "warc", "webdataset", "squad", *TABLES)
_DECODED = ("text", "folder", "html", "warc", "webdataset", "lines", *TABLES)
WILD = re.compile(r"[*?\[]|(?<!\$)\{")
"""Where a path becomes a pattern; `${NAME}` is a variable of the environment."""


class Source(Section):
    """One place that documents come from."""

    kind: Fixed[
        Literal[
            "stdlib", "text", "folder", "jsonl", "json", "csv", "tsv", "parquet", "lines", "squad", "html", "warc",
            "webdataset", "dataset",
        ]
    ]  # fmt: skip
    """stdlib: the running Python's standard library; text: a file, cut into documents; folder: a file is a document;
    jsonl, json (a list of objects), csv, tsv, parquet: a row is a document; lines: line-aligned files, a line of all is
    a row; squad: questions of SQuAD JSON; html: a page is a document, its main text taken out; warc: the same for each
    HTML response in a web archive; webdataset: a sample of a tar is a document; dataset: one split of a dataset built
    before. Compressed files (.gz, .zst, .bz2, .xz) are read as what they hold."""
    name: Fixed[str] = ""
    """What its documents' ids begin with and reports call it; empty: the kind, or the last part of `path`."""
    path: Fixed[Place | None] = None
    """The file or folder, relative to the working directory, or its URL (https://, s3://, any that fsspec knows). Also
    several: `data/*/x.jsonl.gz`, `https://host/part-{000..127}.jsonl.zst` (http lists no folder: use braces). A
    password or signature is written as `${NAME}`, a variable of the environment. A stdlib source needs no path."""
    glob: Fixed[tuple[str, ...]] = ()
    """Which files of a folder, relative to it; none: those with the kind's usual suffixes (folder: every one). Names
    that begin with a dot are passed over."""
    text_field: Fixed[str] = "text"
    """In a dataset of text: the column or JSON field that holds it. webdataset: a sample's text is its `.txt` member,
    else this field of its `.json` one."""
    columns: Fixed[dict[str, str | tuple[str, ...]]] = Field(default={})
    """Kinds with rows, in a dataset of examples: what the task reads -> the file's column, such as
    `{text: sentence, label: label}`; a text with columns in braces, such as `"{instruction}\\n{input}"`; or a list of
    columns, for several references. task.kind says what each task reads."""
    header: Fixed[tuple[str, ...]] = ()
    """csv, tsv: names of the columns, where the file's first line doesn't hold them."""
    files: Fixed[dict[str, Place]] = Field(default={})
    """lines: column -> file, such as `{source: train.en.gz, target: train.de.gz}`; it takes no `path`."""
    into: Fixed[Literal["train", "valid", "heldout"] | None] = None
    """The split that all its documents go to, for a corpus with splits of its own; null: by `split`'s shares."""
    quoted: Fixed[bool | None] = None
    """csv and tsv: whether quotation marks enclose fields (RFC 4180); null: csv yes, tsv no."""
    on_bad_row: Fixed[Literal["error", "drop"]] = "error"
    """A row that isn't one (bad JSON, another number of cells, no text in `text_field`): error names file and line and
    ends the build; drop counts it as `bad_row`. In a dataset of examples task.on_bad_row says."""
    encoding: Fixed[str] = "utf-8"
    """Of the text in files without a byte order mark (UTF-8, -16 and -32 marks are honoured); html and warc take what a
    page declares first. Undecodable documents are dropped as `not_text`, never mended."""
    split: Fixed[Literal["train", "valid", "heldout"]] = "train"
    """A dataset source's split. Its heldout documents were seen by no model trained on the dataset."""
    document_characters: Fixed[Count] = 16384
    """A text source is cut at blank lines into documents of about so many characters; 0: the file is one."""
    weight: Fixed[float] = 1.0
    """Share of the documents that are kept, in (0, 1], picked by hash of their ids; the others count as `not_sampled`.
    What a smaller weight keeps, a larger one keeps too. More than once is the run's to ask: a mixture repeats a
    dataset, the dataset holds each document once."""
    max_documents: Fixed[Annotated[int, Field(ge=1)] | None] = None
    """Stop after so many sampled documents, in the order of files and rows: the rest is not even read. For an unbiased
    part take `weight`."""
    max_bytes: Fixed[Annotated[int, Field(ge=1)] | None] = None
    """The same, before the sampled text exceeds so many bytes of UTF-8."""
    max_document_bytes: Fixed[Annotated[int, Field(ge=1024)]] = 1 << 28
    """A larger document (file, row, page) is passed over as `too_large`, so that one line can't fill the memory."""
    timeout_s: Free[Annotated[float, Field(gt=0)]] = 60.0
    """URLs: seconds to wait for a connection and for each next piece of data."""
    tries: Free[Annotated[int, Field(ge=1)]] = 6
    """URLs: in a row without progress, the waits between them doubling from half a second to 30."""
    licence: Fixed[str] = "unknown"
    """Recorded in the dataset; `allowed_licences` may refuse it."""

    @field_validator("weight")
    @classmethod
    def _a_share(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("weight 0 would keep nothing: take the source out of the recipe instead")
        if not 0 < weight <= 1:
            raise ValueError(
                "weight is the share of the documents that is kept, in (0, 1]. To see some more often than others, "
                "build a dataset of each and weigh them in the run's mixture"
            )
        return weight

    @field_validator("encoding")
    @classmethod
    def _a_known_encoding(cls, encoding: str) -> str:
        try:
            b"a".decode(encoding, "ignore")
        except LookupError:
            raise ValueError("no such text encoding: take Python's name for it, such as gb18030 or latin-1") from None
        return encoding

    @model_validator(mode="after")
    def _settings_of_its_kind(self) -> "Source":
        if (self.kind == "lines") != bool(self.files):
            raise ValueError("kind lines, and no other, needs `files`, such as {source: a.en, target: a.de}")
        if self.kind == "lines" and (self.path is not None or not self.name):
            raise ValueError("a source of kind lines takes `files` and a `name`, and no path")
        if self.kind not in ("stdlib", "lines") and self.path is None:
            raise ValueError(f"a source of kind {self.kind} needs a path")
        if self.kind == "stdlib" and self.path is not None:
            raise ValueError("a stdlib source takes no path: it is the running Python's. Use kind: folder")
        for name, kinds in (
            ("glob", _SEVERAL), ("columns", (*TABLES, "lines")), ("header", ("csv", "tsv")), ("quoted", ("csv", "tsv")),
            ("on_bad_row", (*TABLES, "webdataset")), ("encoding", _DECODED),
        ):  # fmt: skip
            if getattr(self, name) != type(self).model_fields[name].default and self.kind not in kinds:
                raise ValueError(f"a source of kind {self.kind} takes no {name}: only {', '.join(kinds)} do")
        for place in (self.path, *self.files.values()):
            if place is not None and place.startswith("pipe:"):
                raise ValueError("a source can't be a pipe: run the command first, or serve what it gives by a URL")
            try:
                refuse_secrets(place or "")
            except UserError as error:
                raise ValueError(str(error)) from None
        if len(set(self.header)) < len(self.header):
            raise ValueError(f"header names a column twice: {', '.join(self.header)}")
        if self.into and self.kind == "dataset":
            raise ValueError("a source of kind dataset takes no `into`: its documents keep their own sources' names")
        if not self.name and self.path is not None and self.several:
            raise ValueError(f"a source of several files needs a name, such as name: mine: {self.path}")
        if "\n" in self.label or self.label.strip("/.") == "":
            raise ValueError(f"a source can't be called {self.label!r}; give it a name")
        return self

    @cached_property
    def label(self) -> str:
        """The name that reports and ids use."""
        if self.name or self.path is None:
            return self.name or self.kind
        if is_remote(self.path):
            return PurePosixPath(urlsplit(self.path).path).name or urlsplit(self.path).netloc.rpartition("@")[2]
        return self.local.resolve().name

    @property
    def local(self) -> Path:
        """`path` as one of this machine."""
        assert self.path is not None
        return Path(self.path.removeprefix("file://")).expanduser()

    @property
    def remote(self) -> bool:
        """Whether `path` is a URL (file:// is a path)."""
        return self.path is not None and is_remote(self.path) and not self.path.startswith("file://")

    @property
    def several(self) -> bool:
        """Whether `path` is a pattern. A file that is really called so is itself; `?` begins a URL's query."""
        if self.path is None:
            return False
        if not self.remote:
            return bool(WILD.search(self.path)) and not self.local.exists()
        place = self.path.partition("?")[0] if self.path.startswith(("http://", "https://")) else self.path
        return bool(WILD.search(place))

    @property
    def capped(self) -> bool:
        """Whether reading stops before its end."""
        return self.max_documents is not None or self.max_bytes is not None

    @property
    def patience(self) -> Patience:
        """How long its server is waited for."""
        return Patience(self.tries, self.timeout_s)
