"""One member of a zip file, by its exact name, with bounds; nothing is ever extracted to a name from the archive."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PureWindowsPath
from typing import NoReturn

from gpt_train import DataError

_MOST_RATIO = 200  # bytes a compressed byte may become, beyond _SMALL; texts reach 20, a bomb 1,000
_SMALL = 2**20


def read_zip_member(zip_path: Path | str, name: str, *, most_bytes: int) -> bytes:
    """Return the bytes of the archive's member ``name``; neither it nor the archive may have more than ``most_bytes``.

    Raises DataError if the file is no zip file (an HTML page saved under its name is called one) or is damaged, if it
    holds the name not exactly once, or any name that points out of a folder, or if the member is encrypted, a
    link, compressed by something else than deflate, or a bomb; OSError if the file cannot be read.
    """
    path = Path(zip_path)
    size = path.stat().st_size
    if size > most_bytes:  # its list of members is held in memory
        raise DataError(f"{path} has {size:,} bytes, more than the {most_bytes:,} that are read; give another file")
    try:
        with zipfile.ZipFile(path) as archive:
            info = _checked(path, size, archive, name, most_bytes)
            with archive.open(info) as member:
                data = member.read(info.file_size + 1)  # at most most_bytes, as was checked
    except (
        zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
        UnicodeDecodeError, OverflowError,
    ) as error:
        _refuse(path, error)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        _refuse(path, error)  # of a seek before the file's beginning
    if len(data) != info.file_size:
        raise DataError(f"{path} is damaged: {name!r} has {len(data):,} bytes, not {info.file_size:,}; get it anew")
    return data


def _checked(path: Path, size: int, archive: zipfile.ZipFile, name: str, most_bytes: int) -> zipfile.ZipInfo:
    """Return what the archive says of the member, after looking at everything that it says."""
    members = archive.infolist()
    for info in members:
        # orig_filename: filename ends at a NUL, and has no backslash on Windows.
        if not _is_plain(info.orig_filename):
            raise DataError(f"{path} is refused: {info.orig_filename!r:.80} is no name of a file inside a folder")
    found = [info for info in members if info.orig_filename == name]
    if len(found) != 1:
        others = ", ".join(f"{info.orig_filename!r:.40}" for info in members[:12])
        raise DataError(f"{path} has {len(found)} members called {name!r}, not one (it has {others or 'none'})")
    info = found[0]
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        raise DataError(f"{path} is refused: {name!r} is a link or a folder, no file")
    if info.flag_bits & 0x1:
        raise DataError(f"{path} is refused: {name!r} is encrypted; unpack it by hand")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path} is refused: {name!r} is compressed by method {info.compress_type}, not by deflate")
    if info.file_size > most_bytes:
        raise DataError(f"{path} is refused: {name!r} has {info.file_size:,} bytes, more than {most_bytes:,}")
    if info.file_size > max(_SMALL, _MOST_RATIO * min(info.compress_size, size)):
        raise DataError(
            f"{path} is refused as a bomb: {name!r} has {info.file_size:,} bytes in {info.compress_size:,} compressed")
    return info


def _is_plain(name: str) -> bool:
    """Whether the name is a relative path without dots, drives or backslashes, on every system."""
    parts = name.removesuffix("/").split("/")
    return not set(parts) & {"", ".", ".."} and not set(name) & set("\\:\0") and not PureWindowsPath(name).drive


def _refuse(path: Path, error: Exception) -> NoReturn:
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        what = "an HTML page"
    elif start.startswith(b"pk\3\4"):
        what = f"a damaged or cut zip file ({error})"
    else:
        what = f"no zip file ({error})"
    raise DataError(f"{path} is {what}; get it anew") from error
