import sys
from pathlib import Path

import pytest

from gpt_pretrain.corpus import embedded_corpus, file_corpus, without_repeated
from gpt_pretrain.errors import BAD_DATA, PretrainError


def documents(corpus):
    texts = {}
    for document, text in corpus.pieces():
        texts[document] = texts.get(document, "") + text
    return list(texts.values())


def test_embedded_corpus_is_english_about_python():
    texts = documents(embedded_corpus())
    assert len(texts) > 50
    assert 300_000 < sum(map(len, texts)) < 700_000
    assert any("The standard type hierarchy" in text for text in texts)


def test_embedded_corpus_starts_anew_each_time():
    corpus = embedded_corpus()
    assert list(corpus.pieces()) == list(corpus.pieces())


def test_no_topic_of_the_embedded_corpus_stands_for_the_most_part_in_another():
    def paragraphs(text):
        return {" ".join(block.split()) for block in text.split("\n\n")}

    topics = [paragraphs(text) for text in documents(embedded_corpus())]
    for topic in topics:
        others = set().union(*(other for other in topics if other is not topic))
        assert sum(map(len, topic & others)) < 0.5 * sum(map(len, topic))


def test_a_topic_contained_in_a_longer_one_is_left_out():
    topics = {"with": "one two\n\nthree four", "compound": "one two\n\nthree\n  four\n\nfive", "if": "six"}
    assert without_repeated(topics) == ["compound", "if"]


def test_python_without_the_embedded_corpus_says_to_give_data(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(PretrainError, match="gpt-pretrain --data FILE") as caught:
        embedded_corpus()
    assert caught.value.exit_code == BAD_DATA


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_folder_stands_for_its_text_files_at_any_depth_sorted(tmp_path):
    write(tmp_path / "b.md", "B")
    write(tmp_path / "a" / "z.TXT", "Z")
    write(tmp_path / "c.jsonl", '{"text": "1"}\n{"text": "2"}\n')
    write(tmp_path / "picture.png", "no text")
    assert documents(file_corpus([tmp_path])) == ["Z", "B", "1", "2"]


def test_the_runs_own_folder_is_no_data(tmp_path):
    write(tmp_path / "a.txt", "A")
    write(tmp_path / "runs" / "mine" / "README.md", "not this")
    assert documents(file_corpus([tmp_path], leave_out=tmp_path / "runs" / "mine")) == ["A"]


def test_file_named_by_itself_may_have_any_suffix(tmp_path):
    assert documents(file_corpus([write(tmp_path / "book.rst", "text")])) == ["text"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PretrainError, match=r"missing\.txt does not exist"):
        file_corpus([tmp_path / "missing.txt"])


def test_folder_without_text_is_named_with_what_was_looked_for(tmp_path):
    write(tmp_path / "a.csv", "1,2")
    with pytest.raises(PretrainError, match=r"holds no text: no \.txt, \.md, \.jsonl file"):
        file_corpus([tmp_path])
