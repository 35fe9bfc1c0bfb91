from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.corpus import Corpus
from gpt_pretrain.split import split_corpus


def corpus_of(texts, *, piece=1000):
    def pieces():
        for document, text in enumerate(texts):
            for at in range(0, len(text), piece):
                yield document, text[at : at + piece]

    return Corpus(source="test", pieces=pieces)


def sides(split):
    found = [{}, {}]
    for held_out in (False, True):
        for document, text in split.texts(held_out=held_out):
            assert text
            found[held_out][document] = found[held_out].get(document, "") + text
    return found


TEXTS = st.lists(st.text(alphabet="abc ", max_size=40), max_size=60)


@given(texts=TEXTS, piece=st.integers(1, 9), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_both_sides_together_are_the_text_whatever_the_pieces(texts, piece, fraction, seed):
    split = split_corpus(corpus_of(texts, piece=piece), val_fraction=fraction, seed=seed)
    train, val = sides(split)
    assert [train.get(k, "") + val.get(k, "") for k in range(len(texts))] == texts
    assert split.n_characters(held_out=False) == sum(map(len, train.values()))
    assert split.n_characters(held_out=True) == sum(map(len, val.values()))
    assert split.n_documents(held_out=False) == len(train)
    assert split.n_documents(held_out=True) == len(val)


@given(texts=TEXTS, piece=st.integers(1, 9))
def test_split_and_digest_do_not_depend_on_the_pieces(texts, piece):
    texts = [text or "x" for text in texts]
    one, other = (split_corpus(corpus_of(texts, piece=p), val_fraction=0.1, seed=0) for p in (piece, 1000))
    assert (one.sha256, one.n_train) == (other.sha256, other.n_train)


def test_few_documents_hold_out_the_end_of_each_as_the_book_does():
    text = "".join(chr(97 + i % 26) for i in range(20479))
    train, val = sides(split_corpus(corpus_of([text]), val_fraction=0.1, seed=0))
    border = int(0.90 * len(text))  # chapter 5
    assert train == {0: text[:border]}
    assert val == {0: text[border:]}


def test_many_documents_are_held_out_whole_and_come_near_the_fraction():
    texts = [f"{k:04d} " * (k + 1) for k in range(100)]
    split = split_corpus(corpus_of(texts), val_fraction=0.1, seed=0)
    train, val = sides(split)
    assert not train.keys() & val.keys()
    assert 0.09 < sum(map(len, val.values())) / sum(map(len, texts)) <= 0.1


def test_seed_draws_the_documents():
    texts = [f"{k:04d} " for k in range(100)]
    drawn = [frozenset(sides(split_corpus(corpus_of(texts), val_fraction=0.1, seed=s))[1]) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_equal_documents_stay_on_one_side():
    texts = [f"text {k % 10}" for k in range(50)]
    train, val = sides(split_corpus(corpus_of(texts), val_fraction=0.3, seed=1))
    assert val
    assert not set(train.values()) & set(val.values())


def test_digest_tells_where_documents_end():
    digests = {split_corpus(corpus_of(t), val_fraction=0.1, seed=0).sha256 for t in (["ab"], ["a", "b"], ["b", "a"])}
    assert len(digests) == 3
