r"""GPT-2's splitting of text into words, for tiktoken's engine and for counting words in a training text.

The pattern of Radford et al. (2019) reads ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|
?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``: contractions; letters, digits or other marks, each with the space before
them; whitespace, whose last character is left to the word that follows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import tiktoken

# The same words as GPT-2's pattern; possessive (++) because nothing of a run is ever given back.
PATTERN = r"'(?:[sdmt]|ll|re|ve)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Unicode's White_Space, which is what tiktoken's \s means. Python's own \s also takes U+001C to U+001F.
_SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
_SPACE_RUN = re.compile(f"[{_SPACE}]+")
# Words never cross from non-space to space, so a run of spaces and what follows it can be split on its own.
_CHUNK = re.compile(f"[{_SPACE}]*[^{_SPACE}]+|[{_SPACE}]+")
_CHUNK_BORDER = re.compile(f"[^{_SPACE}](?=[{_SPACE}])")

# tiktoken's regex engine panics when a million spaces precede a word: its stack is full.
_LONG_RUN = 65_536
_SLICE = 1_000_000      # characters of one text that are counted at a time
_MAX_CHARACTERS = 8_000_000     # of chunks kept before they are broken into words


def check_unicode(text: str) -> None:
    """Raise ValueError if ``text`` holds a lone surrogate, which no UTF-8 can carry."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"text holds the lone surrogate U+{code:04X} at position {error.start}, not a character; "
            "repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')") from None


def split_long_runs(text: str) -> list[str]:
    """Return ``text`` in pieces that give the same words, none with a long run of whitespace before a word.

    GPT-2's pattern makes one word of a run but its last character, so a cut before that character changes
    nothing.
    """
    step = _LONG_RUN // 2
    if len(text) < _LONG_RUN:
        return [text]
    pieces, begin, position = [], 0, 0
    while position < len(text):     # a run of 2 * step characters is met with step or more left
        run = _SPACE_RUN.match(text, position)
        end = run.end() if run else position
        if end - position >= step and end < len(text):
            pieces.append(text[begin:end - 1])
            begin = end - 1
        position = max(position + step, end)
    pieces.append(text[begin:])
    return pieces


def special_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern with one group that finds the longest of ``names``, or None if there are none."""
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(f"({alternatives})") if alternatives else None


def count_words(texts: Iterable[str], *, special_tokens: Sequence[str] = ()) -> Counter[str]:
    """Return how often each word stands in ``texts``, each of which is split by itself.

    ``special_tokens`` part a text like the border between two texts and are not counted. Memory grows with
    the distinct words, not with the text. Raises ValueError for a lone surrogate, TypeError for what is not
    text.
    """
    special = special_pattern(special_tokens)
    words: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    n_characters = 0    # of chunks, at most: it also counts again those that are there already
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"texts must hold strings, got {type(text).__name__}; decode bytes with .decode('utf-8')")
        check_unicode(text)
        for part in special.split(text)[::2] if special else [text]:
            for piece in _slices(part):
                chunks.update(_CHUNK.findall(piece))
                n_characters += len(piece)
                if n_characters > _MAX_CHARACTERS:
                    n_characters = sum(map(len, chunks))
                    if n_characters > _MAX_CHARACTERS // 2:
                        _count_into(words, chunks)
                        chunks.clear()
                        n_characters = 0
    _count_into(words, chunks)
    return words


def _slices(text: str) -> Iterator[str]:
    """Yield ``text`` in slices of about a million characters that end where a chunk ends."""
    begin = 0
    while len(text) - begin > _SLICE:
        border = _CHUNK_BORDER.search(text, begin + _SLICE)
        if border is None:
            break
        yield text[begin:border.end()]
        begin = border.end()
    yield text[begin:]


def _count_into(words: Counter[str], chunks: Counter[str]) -> None:
    # Splitting each distinct chunk once is 3 to 4 times as fast as running the pattern over the text.
    ascii_words, unicode_words = _word_pattern("A-Za-z", "0-9"), None
    for chunk, n in chunks.items():
        if chunk.isascii():
            found = ascii_words.findall(chunk)
        else:
            unicode_words = unicode_words or unicode_word_pattern()
            found = unicode_words.findall(chunk)
        for word in found:
            words[word] += n


@cache
def _word_pattern(letters: str, digits: str) -> re.Pattern[str]:
    return re.compile(
        f"'(?:[sdmt]|ll|re|ve)| ?[{letters}]+| ?[{digits}]+| ?[^{_SPACE}{letters}{digits}]+"
        f"|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]")


def unicode_word_pattern() -> re.Pattern[str]:
    """Return GPT-2's pattern for ``re``, with the letters and digits that tiktoken's engine knows."""
    return _word_pattern(_members(r"\p{L}+"), _members(r"\p{N}+"))


@cache
def _members(pattern: str) -> str:
    """Return the code points that ``pattern`` matches in tiktoken's engine, as ranges for a class of ``re``.

    Asking the engine (0.04 s) makes the trainer split exactly as the encoder does: Python 3.11's own tables
    differ from tiktoken 0.14's in 9,272 letters, the regex package's in 17,144.
    """
    # Unicode has letters and digits in planes 0 to 3 only; a test compares every character of the others too.
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    engine = tiktoken.Encoding(
        "members", pat_str=pattern, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={})
    points = [ord(c) for c in bytes(engine.encode_ordinary(every)).decode()]    # unmatched text gives no ids
    starts = [p for p, before in zip(points, [-2, *points], strict=False) if p != before + 1]
    ends = [p for p, after in zip(points, [*points[1:], -2], strict=True) if p != after - 1]
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in zip(starts, ends, strict=True))
