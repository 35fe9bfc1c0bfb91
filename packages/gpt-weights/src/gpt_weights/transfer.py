"""One request for the rest of a file, and its answer checked before a byte of it is kept.

HTTP semantics are RFC 9110's: ranges (section 14), If-Range (13.1.5), content codings (8.4.1). Beyond them two
services' own headers: Hugging Face's X-Linked-Size and X-Linked-Etag (the content's size and sha256, on the
answer that redirects to the storage), Azure's Content-MD5 and x-ms-blob-content-md5.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import requests
import urllib3.exceptions

from gpt_weights.part_file import CHUNK, Note, PartFile
from gpt_weights.remote_file import RemoteFile, Timing
from gpt_weights.web_request import MANY, ONCE, TransferError, cause_of, follow, refusal

Progress = Callable[[str, int, int | None], None]

_SNIFFED = 512  # bytes looked at to tell a web page from a file
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*(<!doctype\s+html|<html[\s>])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What the whole file must be, by the caller's word or else by the server's."""

    size: int | None
    sha256: str | None
    md5: str | None


def transfer(
    session: requests.Session,
    url: str,
    file: RemoteFile,
    part: PartFile,
    *,
    headers: Mapping[str, str],
    timing: Timing,
    progress: Progress | None,
) -> None:
    """Bring what ``part`` lacks of ``file`` from ``url``, until it is whole and verified.

    Raises TransferError if it is not then; what came is kept in the part unless it is known to be bad. Raises
    OSError if it cannot be written.
    """
    if part.sha256 == file.sha256:
        return  # whole, but the process that fetched it was killed before it gave it its name
    wanted = _range_headers(url, file, part)
    answers = follow(session, url, headers, {"Accept-Encoding": "identity", **wanted}, timeout=timing.timeout)
    with answers[-1] as response:
        status = response.status_code
        is_rest = bool(wanted) and status in (206, 416)
        if not is_rest and status != 200:
            raise refusal(response)
        total = _total_of_range(response, part, wanted) if is_rest else _total_of_body(response)
        expected = _expected(file, part if is_rest else None, answers, total)
        if status != 416:
            pieces = _decoded(_received(response.raw, timing), _coding(response))
            head = b"" if is_rest else _head(pieces, file.name)
            _check_lengths(response, total, expected)
            if expected.size is not None:
                part.reserve(expected.size)
            if is_rest:
                part.resume(url)
            else:
                part.restart(url, _note(url, file, response, expected))
            for piece in itertools.chain([head], pieces):
                _append(part, piece, expected)
                if progress is not None:
                    progress(file.name, part.size, expected.size)
    if expected.size is not None and part.size < expected.size:
        raise TransferError(f"its answer ended after {part.size:,} of {expected.size:,} bytes", tries=MANY)
    _check_digest(part, expected)


def _range_headers(url: str, file: RemoteFile, part: PartFile) -> dict[str, str]:
    """Return the headers that ask for what the part lacks; none if it can be no part of this address's file."""
    note = part.note
    if note is None or part.size == 0:
        return {}
    condition = {"If-Range": note.etag} if note.etag is not None and note.address == _digest(url) else {}
    is_known = file.sha256 is not None and note.sha256 == file.sha256
    is_too_long = file.size is not None and part.size >= file.size and is_known  # and its sha256 is another
    if is_too_long or not (is_known or condition):
        return {}
    return {"Range": f"bytes={part.size}-", **condition}


def _total_of_range(response: requests.Response, part: PartFile, wanted: Mapping[str, str]) -> int | None:
    """Return the whole file's length by an answer 206 or 416; discard the part if it does not continue it."""
    value = response.headers.get("Content-Range", "")
    if response.status_code == 206:
        match = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", value)
        continues = match is not None and int(match[1]) == part.size and _coding(response) == "identity"
    else:  # 416: there is nothing after the part, because it is the whole
        match = re.fullmatch(r"bytes (\*)/([0-9]+)", value)
        continues = match is not None and int(match[2]) == part.size
    etag = _strong_etag(response)
    if match is None or not continues or (etag is not None and etag != wanted.get("If-Range", etag)):
        message = f"it answers {response.status_code} with the range {value!r} to {wanted['Range']!r}"
        part.discard()
        raise TransferError(message, tries=MANY)
    return None if match[2] == "*" else int(match[2])


def _total_of_body(response: requests.Response) -> int | None:
    """Return the whole file's length by an answer 200."""
    length = response.headers.get("Content-Length", "")
    is_plain = _coding(response) == "identity" and not _is_chunked(response)
    return int(length) if is_plain and re.fullmatch("[0-9]{1,18}", length) else None


def _expected(
    file: RemoteFile, rest_of: PartFile | None, answers: Sequence[requests.Response], total: int | None
) -> _Expected:
    size, sha256, md5 = file.size, file.sha256, None
    response = answers[-1]
    for answer in answers:
        linked = answer.headers.get("X-Linked-Size", "")
        if size is None and re.fullmatch("[0-9]{1,18}", linked):
            size = int(linked)
        tag = answer.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
        if sha256 is None and re.fullmatch("[0-9a-f]{64}", tag):
            sha256 = tag
    md5 = _md5(response, "x-ms-blob-content-md5")
    if md5 is None and rest_of is not None:  # Content-MD5 would be that of the rest alone
        md5 = rest_of.note.md5 if rest_of.note is not None else None
    elif md5 is None and _coding(response) == "identity":
        md5 = _md5(response, "Content-MD5")
    return _Expected(size=total if size is None else size, sha256=sha256, md5=md5 if sha256 is None else None)


def _md5(response: requests.Response, name: str) -> str | None:
    try:
        digest = base64.b64decode(response.headers.get(name, ""), validate=True)
    except ValueError:
        return None
    return digest.hex() if len(digest) == 16 else None


def _note(url: str, file: RemoteFile, response: requests.Response, expected: _Expected) -> Note:
    # A tag of the coded content says nothing of the part, which is decoded.
    etag = _strong_etag(response) if _coding(response) == "identity" else None
    return Note(address=_digest(url), etag=etag, md5=expected.md5, sha256=file.sha256)


def _check_lengths(response: requests.Response, total: int | None, expected: _Expected) -> None:
    if total is not None and total != expected.size:
        raise TransferError(f"its file has {total:,} bytes instead of {expected.size:,}", tries=ONCE, is_wrong=True)
    is_delimited = _is_chunked(response) or _coding(response) != "identity"
    if expected == _Expected(size=None, sha256=None, md5=None) and not is_delimited:
        raise TransferError("it tells no length, so that a part could pass for the whole", tries=ONCE)


def _append(part: PartFile, piece: bytes, expected: _Expected) -> None:
    if expected.size is not None and part.size + len(piece) > expected.size:
        part.discard()
        raise TransferError(f"it sends more than {expected.size:,} bytes", tries=ONCE, is_wrong=True)
    part.append(piece)


def _check_digest(part: PartFile, expected: _Expected) -> None:
    kind, wanted, found = "sha256", expected.sha256, part.sha256
    if wanted is None:
        kind, wanted, found = "md5", expected.md5, part.md5
    if wanted is not None and found != wanted:
        part.discard()
        raise TransferError(f"its file's {kind} is {found} instead of {wanted}", tries=ONCE, is_wrong=True)


def _received(raw: urllib3.BaseHTTPResponse, timing: Timing) -> Iterator[bytes]:
    """Yield the body as it comes, at most CHUNK bytes at once; TransferError if it breaks off or stalls."""
    waited, n_bytes = 0.0, 0
    while True:
        start = time.monotonic()
        try:
            piece = raw.read1(CHUNK, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise TransferError(f"it sent nothing for {timing.timeout:g} s", tries=MANY) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransferError(f"the connection broke: {cause_of(error)}", tries=MANY) from error
        if not piece:
            return
        waited, n_bytes = waited + time.monotonic() - start, n_bytes + len(piece)
        yield piece
        if waited >= timing.window:
            if n_bytes < timing.slowest_rate * waited:
                raise TransferError(f"it stalled: {n_bytes:,} bytes in {waited:.1f} s", tries=MANY)
            waited, n_bytes = 0.0, 0


def _decoded(pieces: Iterator[bytes], coding: str) -> Iterator[bytes]:
    """Undo the coding that was not asked for; CHUNK bytes at once, since 1 MiB of it can hold 1 GiB."""
    if coding == "identity":
        yield from pieces
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise TransferError(f"it codes its answer as {coding}, though asked not to", tries=ONCE)
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by the first bytes
    try:
        for piece in pieces:
            data = bytes(CHUNK)
            while piece or len(data) == CHUNK:
                data = decoder.decompress(piece, CHUNK)
                if data:
                    yield data
                piece = decoder.unconsumed_tail
                if decoder.eof and decoder.unused_data:  # another member follows
                    piece, decoder = decoder.unused_data, zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    except zlib.error as error:
        raise TransferError(f"its {coding} coding is damaged: {error}", tries=MANY) from error
    if not decoder.eof:
        raise TransferError(f"its {coding} coding ends too early", tries=MANY)


def _head(pieces: Iterator[bytes], name: str) -> bytes:
    """Return the first bytes, enough to see that they are no web page where none is wanted."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= _SNIFFED:
            break
    if _PAGE.match(head) and not name.lower().endswith((".html", ".htm")):
        message = "it sends a web page instead of the file: a login page, perhaps, of this network"
        raise TransferError(message, tries=ONCE)
    return head


def _coding(response: requests.Response) -> str:
    return response.headers.get("Content-Encoding", "").strip().lower() or "identity"


def _is_chunked(response: requests.Response) -> bool:
    return "chunked" in response.headers.get("Transfer-Encoding", "").lower()


def _strong_etag(response: requests.Response) -> str | None:
    """Return the entity tag unless it is a weak one, which two different contents may share."""
    tag = response.headers.get("ETag", "")
    return tag if re.fullmatch(r'"[!-~]*"', tag) else None


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8")).hexdigest()
