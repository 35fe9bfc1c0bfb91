"""The SMS Spam Collection and the book's functions for it (chapter 6; Almeida et al. 2011, CC BY 4.0).

``create_balanced_dataset`` and ``random_split`` give the book's rows: what pandas' default reading of the file loses
(two rows within stray quotes) and near duplicates on both sides are part of its numbers. ``read_labelled`` and
``split_labelled`` do without either.
"""

import hashlib
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt_finetune.download import fetch, import_requests, write_whole
from gpt_finetune.encode import SupportsEncode, encode_text
from gpt_finetune.rows import LeftOut
from gpt_finetune.tables import read_csv
from gpt_finetune.zip_member import read_zip_member
from gpt_train import DataError

if TYPE_CHECKING:
    import pandas as pd

SPAM_URLS = (
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
)
_MEMBER = "SMSSpamCollection"
_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"
_MOST_BYTES = 64 * 2**20  # the collection has 0.2 MB, and 0.5 MB unpacked


def download_and_unzip_spam_data(
    url: str, zip_path: Path | str, extracted_path: Path | str, data_file_path: Path | str
) -> None:
    """Fetch the zip file at ``url`` to ``zip_path`` and write its SMSSpamCollection to ``data_file_path``.

    Nothing happens, but for a line that says so, if ``data_file_path`` is there. ``extracted_path`` is made, and
    nothing else of the archive is put there. Raises what requests raises if ``url`` does not deliver, DataError if
    it delivers something else or more than 64 MiB.
    """
    data_file_path = Path(data_file_path)
    if data_file_path.exists():
        print(f"{data_file_path} already exists. Skipping download and extraction.")
        return
    write_whole(Path(zip_path), fetch(url, most_bytes=_MOST_BYTES))
    data = read_zip_member(zip_path, _MEMBER, most_bytes=_MOST_BYTES)
    Path(extracted_path).mkdir(parents=True, exist_ok=True)
    write_whole(data_file_path, data)
    print(f"File downloaded and saved as {data_file_path}")


def download_spam_data(folder: Path | str, *, urls: Sequence[str] = SPAM_URLS) -> Path:
    """Return ``folder / "SMSSpamCollection.tsv"``: label, tab, text, without a row of names; 5,574 rows.

    It is fetched from the first of ``urls`` that delivers it, unless it is there. Its sha256 is checked either way.
    Raises DataError if another file is there under its name, ConnectionError if no address delivers it.
    """
    path = Path(folder) / "SMSSpamCollection.tsv"
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
            raise DataError(f"{path} is not the SMS Spam Collection: its sha256 is another; move it away")
        return path
    requests = import_requests()
    path.parent.mkdir(parents=True, exist_ok=True)
    said = []
    for url in urls:
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".spam-") as temporary:
                zip_path = Path(temporary) / "spam.zip"
                zip_path.write_bytes(fetch(url, most_bytes=_MOST_BYTES))
                data = read_zip_member(zip_path, _MEMBER, most_bytes=_MOST_BYTES)
            if hashlib.sha256(data).hexdigest() != _SHA256:
                raise DataError("its file is another, by its sha256")
        except (requests.RequestException, DataError) as error:
            said.append(f"{url}: {error}")
            continue
        write_whole(path, data)
        return path
    raise ConnectionError(f"no address delivers the spam collection ({'; '.join(said)}); place it by hand at {path}")


def create_balanced_dataset(df: "pd.DataFrame") -> "pd.DataFrame":
    """Return as many rows of Label "ham" as there are of "spam", drawn as the book draws them, then those of "spam".

    Rows keep their index. Raises DataError if there is no row of "spam", or fewer of "ham".
    """
    import pandas as pd

    ham, spam = df[df["Label"] == "ham"], df[df["Label"] == "spam"]
    if not 0 < len(spam) <= len(ham):
        raise DataError(
            f"balancing takes from 'ham' as many rows as 'spam' has, but Label has {len(ham)} of 'ham' and {len(spam)} "
            "of 'spam'; give labels as text, of which 'ham' is the larger")
    return pd.concat([ham.sample(len(spam), random_state=123), spam])


def random_split(
    df: "pd.DataFrame", train_frac: float, validation_frac: float
) -> tuple["pd.DataFrame", "pd.DataFrame", "pd.DataFrame"]:
    """Return training, validation and test rows: shuffled as the book does, cut at the fractions rounded down.

    The index counts on from part to part. Raises ValueError if a fraction is negative or both are above 1 together.
    """
    for name, value in (("train_frac", train_frac), ("validation_frac", validation_frac)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a fraction of at least 0, got {value}")
    if train_frac + validation_frac > 1:
        raise ValueError(f"train_frac + validation_frac must not exceed 1, got {train_frac} + {validation_frac}")
    shuffled = df.sample(frac=1, random_state=123).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return shuffled[:train_end], shuffled[train_end:validation_end], shuffled[validation_end:]


class SpamDataset(Dataset[tuple[Tensor, Tensor]]):
    """The rows of a CSV file with Label (whole numbers) and Text, as ids padded on the right to ``max_length``.

    ``max_length`` None: the longest text's; longer ones are cut. Whatever Text holds is text: "", "NA" and
    "<|endoftext|>", too. A row is (ids (max_length,) int64, label () int64). ``data`` has all the file's columns.
    Quotes are those of RFC 4180, the file is UTF-8; blank lines are passed over. Raises DataError, naming the file and
    where one is known the line, if it has no row, lacks a column, or if a row has other labels, another number of
    fields than the first, or cannot be read; ValueError if ``max_length`` is below 1.
    """

    def __init__(
        self,
        csv_file: Path | str,
        tokenizer: SupportsEncode,
        max_length: int | None = None,
        pad_token_id: int = 50256,
    ) -> None:
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("SpamDataset needs pandas: install 'gpt-finetune[data]'") from error

        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, or None for the longest text, got {max_length}")
        names, rows = _read_rows(Path(csv_file))
        self.data = pd.DataFrame(rows, columns=names)
        self.data["Label"] = [int(label) for label in self.data["Label"]]
        encoded = [encode_text(tokenizer, text) for text in self.data["Text"]]
        self.max_length = max(1, max(map(len, encoded))) if max_length is None else max_length
        cut = [ids[: self.max_length] for ids in encoded]
        self.encoded_texts = [ids + [pad_token_id] * (self.max_length - len(ids)) for ids in cut]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = int(self.data.iloc[index]["Label"])
        return torch.tensor(self.encoded_texts[index]), torch.tensor(label)

    def __len__(self) -> int:
        return len(self.data)


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names and the rows of a file with the columns Label, of whole numbers, and Text.

    pandas' reader takes the first column for an index where rows are longer than the names, fills up shorter ones and
    names no file.
    """
    names: list[str] = []
    rows = []
    for item in read_csv(path):
        if isinstance(item, LeftOut):
            raise DataError(item.located(path))
        line, fields = item
        if len(fields) < 2 and not "".join(fields).strip():
            continue
        if not names:
            names = fields
            for column in ("Label", "Text"):
                if names.count(column) != 1:
                    number = "more than one" if column in names else "no"
                    raise DataError(f"{path} has {number} column {column} (it has {', '.join(names)})")
            continue
        if len(fields) != len(names):
            raise DataError(
                f"{path}:{line}: the row has {len(fields)} fields instead of {len(names)}; put quotes around a text "
                "that has commas")
        label = fields[names.index("Label")]
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", label):
            raise DataError(
                f"{path}:{line} must have whole numbers as Label, found {label!r:.40}; map them first: "
                'df["Label"] = df["Label"].map({"ham": 0, "spam": 1})')
        rows.append(fields)
    if not rows:
        raise DataError(f"{path} has no row; give a file with texts")
    return names, rows
