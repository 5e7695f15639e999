"""Text files, plain or compressed: lines of UTF-8, read one at a time, with bounds on a line and on what a file expands to.

Every reader of lines in this package uses this module: the sources of a data set, and batch scoring.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import PurePath
from typing import IO, Any, BinaryIO, Literal, cast

import pyarrow as pa

from goemotions.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstandard", ".zip": "zip"}
LONGEST_LINE = 2**25
PIECE = 2**20
# A file that expands to more than both was made to fill memory or disk: text expands 3 to 20 times.
EXPANSION, EXPANDED_BYTES = 200, 2**26
BINARY_MAGIC = (b"PAR1\x15", b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
UTF16 = (b"\xff\xfe", b"\xfe\xff")
JUNK = (".DS_Store", "Thumbs.db", "desktop.ini")
DAMAGES = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError, pa.ArrowException)


Opener = Callable[[], BinaryIO]


def open_binary(name: str, opener: Opener) -> BinaryIO:
    """Raises:
    DataError: the file cannot be opened.
    """
    try:
        return opener()
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}): check its path and permissions") from error


def split_name(name: str) -> tuple[str, str, str]:
    """A file's name as stem, ending and compression, the last two in lower case: ``Train.CSV.gz`` is ``Train``, ``.csv``, ``.gz``."""
    path = PurePath(name)
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    if compression:
        path = path.with_suffix("")
    return path.stem, path.suffix.lower(), compression


def lines(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a text file with their line feeds; a byte order mark is removed.

    Args:
        file: the file, opened; ``name`` says how it is compressed.
        name: its name, for the ending and for error messages.

    Raises:
        DataError: the file is damaged, binary or not UTF-8, has a line that is too long, or expands to too much.
    """
    for line, content in enumerate(_raw(file, name, "readline", LONGEST_LINE + 1), start=1):
        if len(content) > LONGEST_LINE:
            raise DataError(f"{name}, line {line}: longer than {LONGEST_LINE >> 20} MiB: check that the file has line feeds")
        try:
            yield content.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(f"{name}, line {line}: not UTF-8 (byte {byte:#04x}): re-encode it") from error


def pieces(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a file in pieces, for a format whose lines may have any length; it raises what ``lines`` does."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        for content in chain(_raw(file, name, "read", PIECE), [b""]):
            yield decoder.decode(content, final=not content)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 (byte {error.object[error.start]:#04x}): re-encode it") from error


def begins_with(file: BinaryIO, name: str, mark: bytes) -> bool:
    """Whether a text file begins with a character, but for a byte order mark and blanks."""
    return next(_raw(file, name, "read", 4096), b"").removeprefix(codecs.BOM_UTF8).lstrip().startswith(mark)


def _is_utf16(start: bytes) -> bool:
    """Whether a file begins with the byte order mark of UTF-16, or with letters of which every other byte is 0."""
    return start.startswith(UTF16) or (len(start) >= 8 and any(set(start[first:16:2]) == {0} for first in (0, 1)))


def _raw(file: BinaryIO, name: str, method: Literal["read", "readline"], size: int) -> Iterator[bytes]:
    *_, compression = split_name(name)
    is_first = True
    try:
        read = getattr(_decompressed(file, name, compression), method)
        while content := read(size):
            if is_first and content.startswith(BINARY_MAGIC):
                raise DataError(f"{name} is not a text file, as its ending says: unpack it, or rename it by what it is")
            if is_first and _is_utf16(content):
                raise DataError(f"{name} is UTF-16, not UTF-8: save it as UTF-8")
            is_first = False
            yield content
    except DAMAGES as error:
        if "too much memory" in str(error):
            raise DataError(f"{name} was compressed with a window of more than 128 MiB: compress it without --long") from error
        if not compression:
            raise DataError(f"{name} cannot be read ({error}): check the file and its permissions") from error
        raise DataError(f"{name} is not a complete {COMPRESSIONS[compression]} file: copy it again") from error


def _decompressed(file: BinaryIO, name: str, compression: str) -> io.BufferedIOBase:
    if not compression:
        return cast(io.BufferedIOBase, file)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if compression == ".gz":
        stream: Any = gzip.GzipFile(fileobj=file)
    elif compression == ".zst":
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    else:
        stream = _only_member(zipfile.ZipFile(file), name)
    return io.BufferedReader(_Bounded(stream, name, size), 2**16)


def _only_member(archive: zipfile.ZipFile, name: str) -> Any:
    members = [item for item in archive.infolist() if not item.is_dir() and not is_junk(item.filename)]
    refuse_encrypted(members, name)
    if len(members) != 1:
        raise DataError(f"{name} holds {len(members)} files, and one is read: unpack it and give the folder")
    return open_member(archive, members[0], name)


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> IO[bytes]:
    """Opens a file of a zip.

    Raises:
        DataError: it is compressed in a way that is not read, such as Deflate64.
    """
    try:
        return archive.open(member)
    except NotImplementedError as error:
        raise DataError(f"{name} cannot be unpacked here ({error}): unpack it, or write it with Deflate") from error


def is_junk(member: str) -> bool:
    """Whether a file of a zip was added by the system that made it."""
    path = PurePath(member)
    return "__MACOSX" in path.parts or path.name in JUNK or path.name.startswith("._")


def refuse_encrypted(members: Iterable[zipfile.ZipInfo], name: str) -> None:
    if any(item.flag_bits & 1 for item in members):
        raise DataError(f"{name} is encrypted: unpack it, and give what it holds")


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends with a named error if it becomes far longer than its file."""

    def __init__(self, stream: Any, name: str, size: int) -> None:
        self._stream, self._name = stream, name
        self._left = longest_content(size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise expands(self._name)
        buffer[: len(content)] = content
        return len(content)


def longest_content(size: int) -> int:
    """The largest number of bytes that a compressed file of this size may hold."""
    return max(EXPANDED_BYTES, EXPANSION * size)


def expands(name: str) -> DataError:
    return DataError(
        f"{name} expands to more than {EXPANSION} times its size and {EXPANDED_BYTES >> 20} MiB: check where it comes from; "
        "if it is what you want, write it without compression"
    )
