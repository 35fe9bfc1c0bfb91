"""From the bytes of POST /classify to the messages in it: every size is checked before it is used.

The body is read with a limit on its bytes and its time, then taken as JSON more strictly than the standard
library does: UTF-8 only, no NaN, no name twice, no deep nesting, no characters that are none.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from starlette.requests import Request

from gpt_spam.guard import RequestError

MAX_BODY_BYTES = 1_000_000
MAX_CHARACTERS = 100_000
"""Of one message."""
MAX_DEPTH = 32
BODY_SECONDS = 10.0
"""The longest that a body may take to arrive: who sends a byte now and then must not hold a place."""

# A string, closed or not, so that every quote is consumed once (time stays linear), or a bracket.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


async def read_body(request: Request) -> bytes:
    """Return the request's body.

    Raises RequestError: 415 unless it is declared as plain JSON, 413 as soon as it is or says it is too large,
    408 if it takes too long. Raises starlette's ClientDisconnect if the client goes away.
    """
    kinds = request.headers.getlist("content-type")
    if len(kinds) != 1 or not re.fullmatch(r'application/json\s*(;\s*charset="?utf-8"?\s*)?', kinds[0].lower()):
        raise RequestError(415, f"the body is {', '.join(kinds)[:80]!a}; send 'Content-Type: application/json'")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "the body is compressed; send it as it is, without Content-Encoding")
    declared = request.headers.get("content-length", "0")
    too_large = RequestError(413, f"the body has more than {MAX_BODY_BYTES:,} bytes; send fewer messages at a time")
    if len(declared) > 20 or int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():  # what it says of its length is not relied on
                if len(body) + len(chunk) > MAX_BODY_BYTES:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds; send it at once") from None
    return bytes(body)


def messages_in(body: bytes, *, max_texts: int) -> list[str]:
    """Return the texts of ``{"texts": [...]}``.

    Raises RequestError: 400 if the body is not strict JSON, 422 if it is of another shape, holds another field, no
    text or more than ``max_texts``, or a text that is empty, only white space or too long.
    """
    content = _strict_json(body)
    if not isinstance(content, dict):
        raise RequestError(422, f'the body is {_kind(content)}; send an object, {{"texts": ["..."]}}')
    unknown = [name for name in content if name != "texts"]
    if unknown:
        raise RequestError(422, f"{unknown[0][:80]!a} is not a field; the only one is 'texts'", field=unknown[0][:80])
    if "texts" not in content:
        raise RequestError(422, "'texts' is missing; give it a list of messages", field="texts")
    texts = content["texts"]
    if not isinstance(texts, list):
        raise RequestError(422, f"'texts' is {_kind(texts)}; give it a list of messages", field="texts")
    if not 1 <= len(texts) <= max_texts:
        raise RequestError(422, f"{len(texts)} messages in 'texts', where 1 to {max_texts} may be", field="texts")
    for index, text in enumerate(texts):
        field = f"texts[{index}]"
        if not isinstance(text, str):
            raise RequestError(422, f"{field} is {_kind(text)}; each message is a string", field=field)
        if len(text) > MAX_CHARACTERS:
            message = f"{field} has {len(text):,} characters; a message has at most {MAX_CHARACTERS:,}"
            raise RequestError(422, message, field=field)
        if not text.strip():
            raise RequestError(422, f"{field} is empty; give it a message or leave it out", field=field)
    return texts


def _strict_json(body: bytes) -> Any:
    """Return the value that ``body`` spells; RequestError 400 if it is not JSON as RFC 8259 advises it."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from error
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(body):  # before json.loads, which recurses
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            raise RequestError(400, f"the body is nested more than {MAX_DEPTH} deep; {{'texts': [...]}} needs 2")
    try:
        content = json.loads(text, object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant)
    except RequestError:
        raise
    except json.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    except ValueError as error:  # the digits of a whole number are more than Python converts
        raise RequestError(400, "a number is too long; 'texts' holds messages only") from error
    for where, string in _strings(content):
        if found := re.search(r"[\x00\ud800-\udfff]", string):
            what = "the character NUL" if found[0] == "\0" else "half of a surrogate pair"
            raise RequestError(400, f"{where or 'the body'} holds {what}, which is no text; leave it out", field=where)
    return content


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise RequestError(400, "an object of the body has the same field twice; send each once")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(400, f"the body holds {name}, which is not JSON")


def _strings(value: Any, where: str | None = None) -> Iterator[tuple[str | None, str]]:
    """Yield (the place, None at the top; the string) of each string in a JSON value; a name counts as its object's."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{where or ''}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield where, name
            yield from _strings(item, f"{where}.{name}" if where else name)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
