"""Opening what a user names as data: a file, a folder, a built-in corpus or a Hugging Face dataset.

Whatever was named, a `Source` is a fixed list of files and a way to read them as documents. Opening one only lists the
files; their content is read by iterating over `pieces`, as often as needed.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seqloom.core.errors import DataError
from seqloom.core.extras import require
from seqloom.data.config import YOUR_DATA
from seqloom.data.corpora import BUILT_IN, CORPORA, builtin_files, read_builtin
from seqloom.data.documents import Piece, Reading
from seqloom.data.files import File, find, list_digest, seen
from seqloom.data.readers import JSON_LINES, TABLES, Record, file_format, read_file, read_records

HUGGING_FACE = "hf:"

PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc"}
CODE = {
    *(".py", ".pyi", ".pyx", ".r", ".jl", ".lua", ".rb", ".pl", ".php", ".sh", ".bash", ".zsh", ".ps1", ".sql"),
    *(".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".rs", ".go", ".zig", ".nim", ".f", ".f90"),
    *(".java", ".kt", ".scala", ".cs", ".fs", ".swift", ".dart", ".js", ".mjs", ".jsx", ".ts", ".tsx", ".html", ".css"),
    *(".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".scm"),
}
RECORDS = TABLES | (JSON_LINES - {".json"})  # a .json file in a folder is seldom a corpus
DOCUMENTS = PROSE | CODE | RECORDS
"""Kinds of files that are read in folders."""


@dataclass(frozen=True)
class Source:
    """A corpus: what the user called it, its files in reading order, and the key of the text in their records."""

    name: str
    files: tuple[File, ...]
    text_field: str
    not_read: Mapping[str, int] = field(default_factory=dict)
    """Files of other kinds beside them: suffix -> how many."""

    @property
    def n_bytes(self) -> int:
        """Size of all files as they are on disk."""
        return sum(file.n_bytes for file in self.files)

    @property
    def built_in(self) -> bool:
        """Whether the corpus is part of this Python rather than the user's own."""
        return self.name.startswith(BUILT_IN)

    @property
    def list_digest(self) -> str:
        """SHA-256 over names and sizes of the files."""
        return list_digest(self.files)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the documents may have changed: when a file was added, removed, moved or written."""
        listed = [(str(file.path.absolute()), file.n_bytes, file.modified_ns) for file in self.files]
        return hashlib.sha256(repr((self.built_in, self.text_field, listed)).encode()).hexdigest()

    def pieces(self, reading: Reading) -> Iterator[Piece]:
        """Read all documents.

        Raises:
            DataError: more records were unreadable than `reading` tolerates.
        """
        if self.built_in:
            yield from read_builtin(self.files, reading)
        else:
            for file in self.files:
                yield from read_file(file.path, self.text_field, reading)

    def records(self, reading: Reading) -> Iterator[Record]:
        """Read all records with all their fields; text without fields becomes records that hold nothing else.

        Raises:
            DataError: more records were unreadable than `reading` tolerates.
        """
        if self.built_in:
            for piece in self.pieces(reading):
                yield Record({self.text_field: piece.text}, piece.origin)
        else:
            for file in self.files:
                yield from read_records(file.path, self.text_field, reading)


def open_source(name: str, text_field: str, kinds: Collection[str] = DOCUMENTS) -> Source:
    """List the files behind a name as given in `SourceConfig.path`.

    Args:
        kinds: which files of a folder are read; a file that is named itself always is.
    Raises:
        DataError: there is nothing of that name, or nothing in it that can be read.
        ConfigError: a dataset name needs an optional package that is absent.
    """
    if name.startswith(BUILT_IN):
        return Source(name, tuple(builtin_files(name)), text_field)
    path = Path(name.removeprefix(HUGGING_FACE)).expanduser()
    if name.startswith(HUGGING_FACE) and not path.is_dir():
        return Source(name, tuple(_dataset_files(name)), text_field)
    try:
        found = find(_split_folder(path), {"node_modules"}) if path.is_dir() else [seen(path, path.parent)]
    except FileNotFoundError:
        if name == YOUR_DATA:
            raise DataError("this recipe trains on data of your own, so name it: --data FILE") from None
        raise DataError(
            f"{path}: no such file or folder; also known: {', '.join(CORPORA)}, {HUGGING_FACE}NAME for a dataset"
        ) from None
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    files = [file for file in found if file_format(file.path) in kinds or not path.is_dir()]
    others = Counter(file_format(file.path) or "without suffix" for file in set(found) - set(files))
    if not files:
        raise DataError(f"{path}: no file in it is of a known kind; known: {_listed(kinds)}")
    if not any(file.n_bytes for file in files):
        raise DataError(f"{path}: empty")
    return Source(name, tuple(files), text_field, dict(sorted(others.items())))


def _split_folder(folder: Path) -> Path:
    """The folder itself, or the training split of a dataset that `save_to_disk` wrote with one folder per split."""
    if not (folder / "dataset_dict.json").is_file():
        return folder
    if not (folder / "train").is_dir():
        raise DataError(f"{folder}: this saved dataset has no split 'train'; name the folder of a split")
    return folder / "train"


def _dataset_files(name: str) -> list[File]:
    """Let `datasets` fetch a dataset; what it leaves in its own cache is a list of Arrow files."""
    dataset, _, subset = name.removeprefix(HUGGING_FACE).partition(":")
    load = require("data", "datasets").load_dataset
    try:
        parts = load(dataset, subset or None, split="train").cache_files
    except Exception as error:  # network, hub and builder each raise their own
        raise DataError(f"{name}: the dataset cannot be loaded: {error}") from error
    paths = [Path(part["filename"]) for part in parts]
    return [seen(path, path.parent) for path in paths]


def _listed(kinds: Collection[str]) -> str:
    code = " and source code" if CODE & set(kinds) else ""
    return ", ".join(sorted(set(kinds) - CODE)) + code
