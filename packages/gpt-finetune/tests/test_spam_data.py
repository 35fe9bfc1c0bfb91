"""The book's functions of chapter 6 for its data, and the collection from its addresses."""

import os
import pickle
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import requests
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt_finetune.spam_data import (
    SpamDataset,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    download_spam_data,
    random_split,
)
from gpt_train import DataError

SPAM = Path(__file__).resolve().parents[4] / "shared" / "data" / "SMSSpamCollection.tsv"
needs_spam = pytest.mark.skipif(not SPAM.exists(), reason="the real SMSSpamCollection.tsv is not beside the repository")
needs_gpt2 = pytest.mark.skipif(
    not os.environ.get("TIKTOKEN_CACHE_DIR"), reason="TIKTOKEN_CACHE_DIR is not set, and tests do not use the network")


class Letters:
    """A tokenizer whose ids are code points."""

    def encode(self, text, *, allowed_special=()):
        return [ord(letter) for letter in text]


def zipped(tmp_path, data, name="SMSSpamCollection"):
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme", "about")
        archive.writestr(name, data)
    content = path.read_bytes()
    path.unlink()
    return content


def csv_file(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return path


# --- the book's download ---


def test_the_books_function_leaves_the_zip_and_the_file_and_nothing_else(tmp_path, serve, capsys):
    site = serve({"/spam.zip": zipped(tmp_path, "ham\thi\n")})
    folder = tmp_path / "sms_spam_collection"
    target = folder / "SMSSpamCollection.tsv"
    for _ in range(2):
        download_and_unzip_spam_data(site.url("/spam.zip"), str(tmp_path / "spam.zip"), str(folder), target)

    assert target.read_text(encoding="utf-8") == "ham\thi\n"
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == ["SMSSpamCollection.tsv", "sms_spam_collection", "spam.zip"]
    assert site.asked == ["/spam.zip"]
    assert capsys.readouterr().out == (
        f"File downloaded and saved as {target}\n{target} already exists. Skipping download and extraction.\n")


@pytest.mark.parametrize(("page", "error"), [
    (404, requests.exceptions.HTTPError),
    (503, requests.exceptions.HTTPError),
    ((b"cut", 100), requests.exceptions.ChunkedEncodingError),
    (b"<html>log in</html>", DataError),
    (b"", DataError),
])  # fmt: skip
def test_an_address_that_does_not_deliver_leaves_no_file(tmp_path, serve, page, error):
    target = tmp_path / "folder" / "file.tsv"
    with pytest.raises(error):
        download_and_unzip_spam_data(serve({"/a": page}).url("/a"), tmp_path / "a.zip", tmp_path / "folder", target)
    assert not target.exists()
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_a_closed_port_is_what_requests_says_it_is(tmp_path, serve):
    site = serve({})
    url = site.url("/a")
    site.close()
    with pytest.raises(requests.exceptions.ConnectionError):
        download_and_unzip_spam_data(url, tmp_path / "a.zip", tmp_path, tmp_path / "file.tsv")


def test_a_download_without_end_is_cut_off(tmp_path, serve, monkeypatch):
    monkeypatch.setattr("gpt_finetune.spam_data._MOST_BYTES", 2**20)
    site = serve({"/a": bytes(2**22)})
    with pytest.raises(DataError, match=r"sends more than 1,048,576 bytes"):
        download_and_unzip_spam_data(site.url("/a"), tmp_path / "a.zip", tmp_path, tmp_path / "file.tsv")
    assert list(tmp_path.iterdir()) == []


# --- the collection, checked ---


@needs_spam
def test_the_collection_comes_from_the_first_address_that_has_it(tmp_path, serve):
    right = SPAM.read_bytes()
    site = serve({
        "/html": b"<html>log in</html>",
        "/other": zipped(tmp_path, right + b"x"),
        "/name": zipped(tmp_path, right, "x"),
        "/right": zipped(tmp_path, right),
    })
    folder = tmp_path / "new" / "folder"
    names = ["/missing", "/html", "/other", "/name", "/right", "/never"]
    for _ in range(2):
        path = download_spam_data(folder, urls=[site.url(name) for name in names])
        assert path == folder / "SMSSpamCollection.tsv"
        assert path.read_bytes() == right
        assert list(folder.iterdir()) == [path]
    assert site.asked == names[:5]


def test_no_address_is_a_connection_error_in_a_sentence(tmp_path, serve):
    site = serve({"/html": b"<html>log in</html>"})
    with pytest.raises(ConnectionError) as caught:
        download_spam_data(tmp_path, urls=[site.url("/missing"), site.url("/html")])
    message = caught.value.args[0]

    assert "/missing: 404" in message
    assert "an HTML page" in message
    assert message.endswith(f"place it by hand at {tmp_path / 'SMSSpamCollection.tsv'}")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_another_file_under_its_name_is_an_error_and_stays(tmp_path):
    path = tmp_path / "SMSSpamCollection.tsv"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not the SMS Spam Collection"):
        download_spam_data(tmp_path, urls=[])
    assert path.read_text(encoding="utf-8") == "mine"


@needs_spam
def test_a_collection_that_is_there_needs_no_requests(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "requests", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"downloading needs requests: install 'gpt-finetune\[data\]'"):
        download_spam_data(tmp_path)
    path = tmp_path / "SMSSpamCollection.tsv"
    path.write_bytes(SPAM.read_bytes())
    assert download_spam_data(tmp_path) == path
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not the SMS Spam Collection"):
        download_spam_data(tmp_path)


# --- balance and split ---


@needs_spam
def test_the_books_path_gives_the_books_numbers():
    """4,825 ham and 747 spam with pandas' default quoting, 747 of each, then 1,045, 149 and 300."""
    df = pd.read_csv(SPAM, sep="\t", header=None, names=["Label", "Text"])
    assert df["Label"].value_counts().to_dict() == {"ham": 4825, "spam": 747}
    balanced = create_balanced_dataset(df)
    assert balanced["Label"].tolist() == ["ham"] * 747 + ["spam"] * 747
    balanced["Label"] = balanced["Label"].map({"ham": 0, "spam": 1})
    parts = random_split(balanced, 0.7, 0.1)

    assert [len(part) for part in parts] == [1045, 149, 300]
    assert [part.index[0] for part in parts] == [0, 1045, 1194]
    assert sorted(pd.concat(parts)["Text"]) == sorted(balanced["Text"])


@needs_spam
@needs_gpt2
def test_the_longest_message_of_the_books_training_set_has_120_tokens(tmp_path):
    df = pd.read_csv(SPAM, sep="\t", header=None, names=["Label", "Text"])
    balanced = create_balanced_dataset(df)
    balanced["Label"] = balanced["Label"].map({"ham": 0, "spam": 1})
    train, validation, _ = random_split(balanced, 0.7, 0.1)
    train.to_csv(tmp_path / "train.csv", index=None)
    validation.to_csv(tmp_path / "validation.csv", index=None)
    gpt2 = tiktoken.get_encoding("gpt2")
    data = SpamDataset(tmp_path / "train.csv", gpt2)
    held_out = SpamDataset(tmp_path / "validation.csv", gpt2, max_length=data.max_length)

    assert (len(data), data.max_length, held_out[0][0].shape) == (1045, 120, (120,))
    for i in (0, 500, 1044):
        ids, label = data[i]
        n = len(gpt2.encode(train["Text"].iloc[i]))
        assert gpt2.decode(ids[:n].tolist()) == train["Text"].iloc[i]
        assert ids[n:].tolist() == [50256] * (120 - n)
        assert label == train["Label"].iloc[i]


def test_ham_is_drawn_as_pandas_draws_it_with_seed_123():
    df = pd.DataFrame({"Label": ["ham", "spam", "ham", "ham", "spam", "ham"], "Text": list("abcdef")})
    drawn = df[df["Label"] == "ham"].sample(2, random_state=123).index.tolist()
    assert create_balanced_dataset(df).index.tolist() == [*drawn, 1, 4]


@pytest.mark.parametrize("labels", [["ham", "spam", "spam"], [0, 1, 0], ["ham", "ham"]])
def test_what_cannot_be_balanced_is_an_error(labels):
    with pytest.raises(DataError, match="balancing takes"):
        create_balanced_dataset(pd.DataFrame({"Label": labels, "Text": "x"}))


def test_parts_are_cut_from_a_shuffle_with_seed_123():
    df = pd.DataFrame({"Text": list("abcdefghij")}, index=range(5, 15))
    shuffled = df.sample(frac=1, random_state=123)["Text"].tolist()
    train, validation, test = random_split(df, 0.55, 0.25)

    assert (train["Text"].tolist(), train.index.tolist()) == (shuffled[:5], [0, 1, 2, 3, 4])
    assert (validation["Text"].tolist(), validation.index.tolist()) == (shuffled[5:7], [5, 6])
    assert (test["Text"].tolist(), test.index.tolist()) == (shuffled[7:], [7, 8, 9])
    assert len(random_split(df, 0.9, 0.1)[2]) == 0


@pytest.mark.parametrize(("train", "validation"), [(0.8, 0.3), (-0.1, 0.5), (0.5, -0.1), (float("nan"), 0.1)])
def test_fractions_that_leave_a_part_short_are_refused(train, validation):
    with pytest.raises(ValueError, match="frac"):
        random_split(pd.DataFrame({"Text": list("abc")}), train, validation)


# --- the dataset ---


def test_a_row_is_padded_ids_and_a_label(tmp_path):
    data = SpamDataset(csv_file(tmp_path, 'Label,Text\n0,abc\n1,"d,"\n'), Letters(), pad_token_id=7)
    ids, label = data[1]

    assert (len(data), data.max_length) == (2, 3)
    assert data.encoded_texts == [[97, 98, 99], [100, 44, 7]]
    assert ids.dtype == label.dtype == torch.int64
    assert (ids.tolist(), label.item(), label.shape) == ([100, 44, 7], 1, ())
    assert data.data["Text"].tolist() == ["abc", "d,"]


def test_longer_texts_are_cut_and_shorter_ones_padded_to_max_length(tmp_path):
    path = csv_file(tmp_path, "Label,Text\n0,abc\n1,d\n")
    assert SpamDataset(path, Letters(), max_length=2).encoded_texts == [[97, 98], [100, 50256]]
    assert SpamDataset(path, Letters(), max_length=4).encoded_texts[0] == [97, 98, 99, 50256]


@pytest.mark.parametrize("text", ["NA", "null", "NaN", "None", "1.0", " x "])
def test_whatever_text_holds_is_text(tmp_path, text):
    data = SpamDataset(csv_file(tmp_path, f"Label,Text\n0,{text}\n"), Letters())
    assert "".join(map(chr, data.encoded_texts[0])) == text


def test_an_empty_text_is_only_padding(tmp_path):
    assert SpamDataset(csv_file(tmp_path, "Label,Text\n0,\n1,ab\n"), Letters()).encoded_texts[0] == [50256, 50256]
    assert SpamDataset(csv_file(tmp_path, "Label,Text\n0,\n"), Letters()).encoded_texts == [[50256]]


@needs_gpt2
def test_a_message_cannot_hold_the_end_of_text_token(tmp_path):
    path = csv_file(tmp_path, "Label,Text\n1,win <|endoftext|> now\n")
    gpt2 = tiktoken.get_encoding("gpt2")
    ids = SpamDataset(path, gpt2)[0][0].tolist()
    assert 50256 not in ids
    assert gpt2.decode(ids) == "win <|endoftext|> now"


@pytest.mark.parametrize(("text", "words"), [
    ("Label,Message\n0,a\n", r"no column Text \(it has Label, Message\)"),
    ("Text\na\n", "no column Label"),
    ("Label,Text\n", "no row"),
    ("Label,Text\nham,a\n", "must have whole numbers as Label, found 'ham'"),
    ("Label,Text\n0,a\n,b\n", ":3 must have whole numbers as Label, found ''"),
    ("Label,Text\n0,a\n,\n", ":3 must have whole numbers as Label, found ''"),
    ("Label,Text\n0,a\n1.0,b\n", ":3 must have whole numbers as Label, found '1.0'"),
    ("", "no row"),
    ("\n\n", "no row"),
    ("Label,Text\n0,1,\n1,2,\n0,3,\n", ":2: the row has 3 fields instead of 2; put quotes around"),
    ("Label,Text\n0,a\n0,a,b,c\n", ":3: the row has 4 fields instead of 2"),
    ("Label,Text\n0,a\n1\n", ":3: the row has 1 fields instead of 2"),
    ('Label,Text\n0,a\n1,"b\n0,c\n', ":3: a quote is opened and not closed"),
    ('Label,Text\n0,"a"b\n', ":2: a quote within a quoted field is not doubled"),
    ("Label,Text\n0,a\rb\n", ":2: a carriage return"),
    ("Label,Text\n0,caf\udce9\n", ":2:6: byte 0xe9 is not UTF-8; if the file is latin-1, convert it"),
    ("Label,Text,Text\n0,a,b\n", "more than one column Text"),
])
def test_a_file_of_another_kind_is_an_error(tmp_path, text, words):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=words) as caught:
        SpamDataset(path, Letters())
    assert caught.value.args[0].startswith(str(path))


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))


@given(st.lists(st.tuples(st.integers(-5, 5), texts, st.text("ab,\"\n")), min_size=1))
def test_what_pandas_writes_is_read_as_it_was_with_further_columns_too(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("written") / "train.csv"
    df = pd.DataFrame(rows, columns=["Label", "Text", "Note, or so"])
    for part in (df, df[["Label", "Text"]], df[["Note, or so", "Text", "Label"]]):
        part.to_csv(path, index=None)
        found = SpamDataset(path, Letters())
        assert found.data["Label"].dtype == "int64"
        assert found.data.to_dict("list") == part.to_dict("list")


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfLabel,Text\r\n\r\n0,a\r\n  \r\n 1 ,b\r\n\r\n")
    assert SpamDataset(path, Letters()).data.to_dict("list") == {"Label": [0, 1], "Text": ["a", "b"]}


def test_a_file_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        SpamDataset(tmp_path / "none.csv", Letters())


@pytest.mark.parametrize("max_length", [0, -1])
def test_a_length_below_one_is_refused(tmp_path, max_length):
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        SpamDataset(csv_file(tmp_path, "Label,Text\n0,a\n"), Letters(), max_length=max_length)


def test_the_dataset_works_in_a_loader_and_can_be_sent_to_a_worker(tmp_path):
    data = SpamDataset(csv_file(tmp_path, "Label,Text\n0,abc\n1,d\n1,ef\n"), Letters())
    batches = list(DataLoader(pickle.loads(pickle.dumps(data)), batch_size=2))
    assert [(ids.shape, labels.tolist()) for ids, labels in batches] == [((2, 3), [0, 1]), ((1, 3), [1])]
