"""The members of tar and zip archives, read so that no damage passes for the end of the archive."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from data.text.decompression import Expansion, counted, read_to_end
from data.text.files import ReadingNotes


def tar_members(stream: BinaryIO, notes: ReadingNotes) -> Iterator[tuple[str, BinaryIO]]:
    """Yields the name and the content of each file in a tar archive; links and devices are passed over.

    Raises:
        tarfile.TarError: the archive is damaged, or does not end as it should.
    """
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedHeader) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member)
            elif not member.isdir():
                notes.passed_over["link or device"] += 1
        while rest := archive.fileobj.read(1 << 16):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is more after the end of the archive")


class _CheckedHeader(tarfile.TarInfo):
    """A header whose damage is an error: `tarfile` takes a damaged or missing header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        """Parses a header; zeros, the end of an archive, raise the error that `tarfile` expects."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            reason = "the end of the archive is missing" if not buf else error
            raise tarfile.ReadError(str(reason)) from None


def zip_members(stream: BinaryIO, expansion: Expansion, notes: ReadingNotes) -> Iterator[tuple[str, BinaryIO]]:
    """Yields the name and the content of each file in a zip archive; links are passed over.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
    """
    with _seekable(stream) as whole, zipfile.ZipFile(whole) as archive:
        for member in archive.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                notes.passed_over["link or device"] += 1
            elif member.flag_bits & 1:
                raise zipfile.BadZipFile(f"{member.filename} in it is encrypted; unpack it with its password")
            elif not member.is_dir():
                with archive.open(member) as content, counted(content, expansion) as unpacked:
                    yield member.filename, unpacked
                    read_to_end(unpacked)


def _seekable(stream: BinaryIO) -> BinaryIO:
    with suppress(AttributeError):  # a member of a streamed archive has no such method
        if stream.seekable():
            return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy
