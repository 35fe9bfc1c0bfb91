"""A model becomes a GGUF file and comes back; the package gguf, llama.cpp's own, reads and writes the same."""

import dataclasses
import errno
import json
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_models import CONFIG, byte_tokenizer, saved

from gpt_weights import TokenizerFile, WeightsError, export_gguf, inspect, open_weights

KINDS = ("f32", "f16", "q8_0")


def pairs_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def values_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors as the package gguf reads them."""
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    return {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_package_gguf_reads_each_tensor_as_we_read_it(tied: bool, kind: Any, tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, tie_weights=tied))
    export = export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind=kind)
    theirs, written = values_of(export.path), open_weights(export.path)
    assert written.config == dataclasses.replace(CONFIG, tie_weights=tied)
    for name, ours, original in [(n, t.float(), source.tensor(n)) for n, t in written.tensors()]:
        link = next(link for link in written.contents.links if name in link.ours)
        assert torch.equal(ours, theirs[link.theirs].chunk(len(link.ours))[link.ours.index(name)])
        assert float((ours - original).abs().max()) <= export.largest_difference
    assert torch.equal(theirs["output.weight"], theirs["token_embd.weight"]) == tied
    assert (export.largest_difference == 0) == (kind == "f32")


def test_float16_and_the_8_bits_are_those_of_the_package_gguf(tmp_path: Path) -> None:
    source = saved(tmp_path)
    for kind, of_kind in [("f16", gguf.GGMLQuantizationType.F16), ("q8_0", gguf.GGMLQuantizationType.Q8_0)]:
        path = export_gguf(source, tmp_path / f"{kind}.gguf", tokenizer=byte_tokenizer(), kind=kind).path  # type: ignore[arg-type]
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for theirs, ours in [("blk.1.ffn_down.weight", "trf_blocks.1.ff.layers.2.weight"),
                             ("token_embd.weight", "tok_emb.weight")]:
            assert found[theirs].tensor_type == of_kind
            expected = gguf.quantize(source.tensor(ours).numpy(), of_kind)
            assert np.asarray(found[theirs].data).tobytes() == expected.tobytes()
        assert {t.name for t in found.values() if t.tensor_type == gguf.GGMLQuantizationType.F32} == {
            name for name in found if name.endswith((".bias", "norm.weight"))
        } | {"position_embd.weight"}


def test_the_pairs_are_those_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    pairs = pairs_of(export_gguf(saved(tmp_path), tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind="q8_0").path)
    for name, value in {
        "general.architecture": "gpt2", "general.file_type": 7, "general.alignment": 32,
        "gpt2.context_length": 16, "gpt2.embedding_length": 32, "gpt2.feed_forward_length": 128,
        "gpt2.block_count": 2, "gpt2.attention.head_count": 4,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 259, "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.ggml.merges": ["t h", "th e", "\u0120 the"],
        "tokenizer.ggml.tokens": list(byte_tokenizer().vocabulary),
        "tokenizer.ggml.token_type": [1] * 259 + [3],
    }.items():
        assert pairs[name] == value, name
    assert pairs["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    export_gguf(saved(tmp_path), tmp_path / "m.gguf", tokenizer=byte_tokenizer())
    back = open_weights(tmp_path / "m.gguf").tokenizer
    assert back is not None
    assert json.loads(back.data) == json.loads(byte_tokenizer().data)


def test_ids_without_a_token_are_filled_with_unused_ones(tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, vocab_size=264))
    export = export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer())
    pairs = pairs_of(export.path)
    assert pairs["tokenizer.ggml.tokens"][259:] == ["<|endoftext|>", "[PAD260]", "[PAD261]", "[PAD262]", "[PAD263]"]
    assert pairs["tokenizer.ggml.token_type"][259:] == [3, 5, 5, 5, 5]
    assert "4 of 264 ids have no token" in export.notes
    back = open_weights(export.path).tokenizer
    assert back is not None
    assert back.vocabulary == byte_tokenizer().vocabulary


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_types_are_exported_too(dtype: torch.dtype, tmp_path: Path) -> None:
    source = saved(tmp_path, dtype=dtype)
    export = export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind="f32")
    assert export.largest_difference == 0  # of float64 too, since these values were float32 before


def test_a_model_without_biases_for_query_key_and_value_gets_zeros(tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, qkv_bias=False))
    path = export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind="f32").path
    assert not values_of(path)["blk.0.attn_qkv.bias"].any()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(open_weights(path).model()(ids), source.model()(ids), atol=1e-5, rtol=0)


def test_rows_that_fill_no_block_stay_in_float16(tmp_path: Path) -> None:
    source = saved(tmp_path, dataclasses.replace(CONFIG, emb_dim=24))
    export = export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind="q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(export.path).tensors}
    assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")
    assert any("float16" in note for note in export.notes)


def test_a_modelfile_is_written_beside_it_unless_there_is_one(tmp_path: Path) -> None:
    source = saved(tmp_path)
    export_gguf(source, tmp_path / "out" / "first.gguf", tokenizer=byte_tokenizer())
    text = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./first.gguf\n")
    assert '"""{{ .Prompt }}"""' in text
    second = export_gguf(source, tmp_path / "out" / "second.gguf", tokenizer=byte_tokenizer())
    assert (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8") == text
    assert any("Modelfile" in note for note in second.notes)


class WritesModelfile(TokenizerFile):
    """When its merges are asked for, in the midst of an export, someone else writes a Modelfile."""

    @property
    def merges(self) -> list[str]:
        self.path.with_name("Modelfile").write_text("mine", encoding="utf-8")
        return super().merges


def test_a_modelfile_that_comes_meanwhile_is_left_and_told(tmp_path: Path) -> None:
    tokenizer = WritesModelfile(tmp_path / "tokenizer.json", byte_tokenizer().data)
    export = export_gguf(saved(tmp_path), tmp_path / "m.gguf", tokenizer=tokenizer)
    assert export.path.is_file()
    assert (tmp_path / "Modelfile").read_text(encoding="utf-8") == "mine"
    assert "the Modelfile that lies beside it is left as it was" in export.notes


def test_a_file_called_modelfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has the name of the Modelfile"):
        export_gguf(saved(tmp_path), tmp_path / "modelfile", tokenizer=byte_tokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_several_threads_export_into_one_new_folder(tmp_path: Path) -> None:
    source = saved(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        targets = [tmp_path / "out" / f"{i}.gguf" for i in range(8)]
        list(pool.map(lambda target: export_gguf(source, target, tokenizer=byte_tokenizer()), targets))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{i}.gguf" for i in range(8)), "Modelfile"]


def test_tokens_of_the_user_come_back_as_added_and_not_special(tmp_path: Path) -> None:
    made = json.loads(byte_tokenizer().data)
    made["added_tokens"].insert(0, {**made["added_tokens"][0], "content": "the", "special": False,
                                    "id": made["model"]["vocab"]["the"]})
    tokenizer = TokenizerFile(tmp_path, json.dumps(made).encode())
    export_gguf(saved(tmp_path), tmp_path / "m.gguf", tokenizer=tokenizer)
    back = open_weights(tmp_path / "m.gguf").tokenizer
    assert back is not None
    assert back.added_tokens == tokenizer.added_tokens == {"the": 257, "<|endoftext|>": 259}
    assert back.special_tokens == {"<|endoftext|>": 259}


def test_an_error_while_the_file_is_open_does_not_keep_its_map(tmp_path: Path) -> None:
    path = export_gguf(saved(tmp_path), tmp_path / "m.gguf", tokenizer=byte_tokenizer()).path
    files = open_weights(path).files
    with pytest.raises(RuntimeError), files.open() as get:  # noqa: PT012
        get("token_embd.weight")
        raise RuntimeError
    with pytest.raises(IndexError):  # the map is gone, though ``get`` is not
        get("token_embd.weight")


def test_what_llama_cpp_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path)
    classifier = saved(tmp_path / "classifier", dataclasses.replace(CONFIG, n_classes=2))
    rotary = saved(tmp_path / "rotary", dataclasses.replace(CONFIG, positions="rotary"))
    other = byte_tokenizer(pre_tokenizer={"type": "Split", "pattern": {"String": " "}})
    (tmp_path / "there.gguf").write_text("mine", encoding="utf-8")
    for weights, name, tokenizer, message in [
        (source, "m.gguf", None, "there is no tokenizer beside .*--tokenizer"),
        (source, "m.gguf", other, "does not split text into words as GPT-2 does"),
        (classifier, "m.gguf", byte_tokenizer(), "is a classifier"),
        (rotary, "m.gguf", byte_tokenizer(), "no GPT-2, so the layout gguf cannot hold it"),
        (source, "there.gguf", byte_tokenizer(), "there.gguf is not replaced"),
    ]:
        with pytest.raises(WeightsError, match=message):
            export_gguf(weights, tmp_path / name, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="kind must be one of f32, f16, q8_0, got 'q4_0'"):
        export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind="q4_0")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "model", "rotary", "there.gguf"]


def test_a_disk_that_takes_only_so_much_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="the limit of a file's size is POSIX's")
    source = saved(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 7_000, 60_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match=r"cannot write ") as caught:
                export_gguf(source, tmp_path / "m.gguf", tokenizer=byte_tokenizer())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["BF16", "Q4_0", "Q5_1", "Q8_0"])
def test_types_that_others_write_are_read(name: str, tmp_path: Path) -> None:
    path = export_gguf(saved(tmp_path), tmp_path / "m.gguf", tokenizer=byte_tokenizer(), kind="f32").path
    of_kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    writer.add_head_count(4)
    expected = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = np.array(tensor.data)
        if values.ndim == 2 and tensor.name != "position_embd.weight":
            raw = gguf.quantize(values, of_kind)
            writer.add_tensor(tensor.name, raw, raw_shape=raw.shape, raw_dtype=of_kind)
            values = gguf.dequantize(raw, of_kind)
        else:
            writer.add_tensor(tensor.name, values)
        expected[tensor.name] = torch.from_numpy(np.array(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_weights(tmp_path / "other.gguf")
    assert (weights.tokenizer, weights.config.n_heads) == (None, 4)
    found = dict(weights.tensors())
    assert torch.equal(found["tok_emb.weight"].float(), expected["token_embd.weight"])
    assert torch.equal(found["trf_blocks.1.att.W_key.weight"].float(), expected["blk.1.attn_qkv.weight"][32:64])


def test_without_the_package_gguf_plain_values_are_read_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path)
    plain, quantized = (
        export_gguf(source, tmp_path / f"{kind}.gguf", tokenizer=byte_tokenizer(), kind=kind).path  # type: ignore[arg-type]
        for kind in ("f16", "q8_0")
    )
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert open_weights(plain).tensor("tok_emb.weight").dtype == torch.float16
    with pytest.raises(ImportError, match=r"install 'gpt-weights\[gguf\]'"):
        open_weights(quantized)
    with pytest.raises(ImportError, match=r"install 'gpt-weights\[gguf\]'"):
        export_gguf(source, tmp_path / "new.gguf", tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("good")
    return export_gguf(saved(folder), folder / "m.gguf", tokenizer=byte_tokenizer(), kind="q8_0").path.read_bytes()


def refusal(data: bytes, path: Path) -> str:
    """Return with which words the file is refused, at once."""
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        open_weights(path)
    assert time.perf_counter() - start < 2
    return str(caught.value)


def test_counts_and_lengths_that_the_file_cannot_hold_are_refused_at_once(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    huge = struct.pack("<Q", 2**63)
    tokens = good.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    embedding = good.index(b"token_embd.weight") + len(b"token_embd.weight")
    for at, message in [
        (8, "claims 9,223,372,036,854,775,808 tensors"),
        (16, "claims 9,223,372,036,854,775,808 key/value pairs"),
        (24, "bytes of text"),
        (tokens, "values in an array"),
        (embedding + 4, "do not fill blocks|but the file has"),
        (embedding + 12, "but the file has"),
        (embedding + 24, "but the file has"),
    ]:
        assert any(m in refusal(good[:at] + huge + good[at + 8 :], path) for m in message.split("|")), at


def test_a_tensor_beyond_the_end_of_the_file_is_refused(good: bytes, tmp_path: Path) -> None:
    """Ollama's CVE-2026-7482: offset and size were not compared with the file's."""
    assert "ends at" in refusal(good[:-100], tmp_path / "cut.gguf")
    at = good.index(b"blk.0.attn_qkv.bias") + len(b"blk.0.attn_qkv.bias") + 4 + 8 + 4
    for offset in (2**64 - 32, 2**40, len(good) // 32 * 32):
        changed = good[:at] + struct.pack("<Q", offset) + good[at + 8 :]
        assert "ends at" in refusal(changed, tmp_path / "beyond.gguf")


def test_tensors_that_share_bytes_or_leave_some_out_are_refused(good: bytes, tmp_path: Path) -> None:
    at = good.index(b"blk.0.attn_qkv.bias") + len(b"blk.0.attn_qkv.bias") + 4 + 8 + 4
    assert "would follow the tensor before it" in refusal(good[:at] + bytes(8) + good[at + 8 :], tmp_path / "bad.gguf")
    assert "its last 40 bytes belong to no tensor" in refusal(good + bytes(40), tmp_path / "bad.gguf")
    fewer = struct.pack("<Q", struct.unpack("<Q", good[8:16])[0] - 1)
    assert "bytes belong to no tensor" in refusal(good[:8] + fewer + good[16:], tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF\x03\x00\x00\x00", b"GGUF\x01\x00\x00\x00", "version is 1"),
        (b"GGUF\x03\x00\x00\x00", b"GGUF\x00\x00\x00\x03", "version is 50331648"),
        (b"\x04\x00\x00\x00\x00\x00\x00\x00gpt2", b"\x04\x00\x00\x00\x00\x00\x00\x00gptj", "architecture 'gptj'"),
        (b"blk.1.attn_norm.bias", b"blk.1.attn_norm.bios", "are missing"),
        (b"gpt2.block_count\x04\x00\x00\x00\x02", b"gpt2.block_count\x04\x00\x00\x00\x03", "n_layers=2"),
        (b"gpt2.block_count\x04\x00\x00\x00\x02", b"gpt2.block_count\x04\x00\x00\x00\x00", "whole number"),
        (b"general.alignment\x04\x00\x00\x00\x20", b"general.alignment\x04\x00\x00\x00\x21", "power of two"),
        (b"gpt2.block_count", b"gpt2.block_c\xffunt", "not UTF-8"),
    ],
)
def test_what_is_not_gpt2s_is_refused_by_name(
    good: bytes, old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    assert good.count(old) >= 1
    assert message in refusal(good.replace(old, new, 1), tmp_path / "bad.gguf")


def test_a_model_that_is_one_of_several_parts_is_refused_with_the_way_out(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "gpt2")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "llama-gguf-split --merge" in refusal((tmp_path / "part.gguf").read_bytes(), tmp_path / "again.gguf")


@given(data=st.data())
def test_a_changed_header_is_refused_or_gives_the_same_shapes(
    good: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    header = good.index(b"blk.1.ffn_down.bias") + 100
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed[: data.draw(st.sampled_from([len(good), header, header // 2]))])
    try:
        weights = open_weights(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors()}
    except WeightsError:
        return
    assert shapes["tok_emb.weight"] == (260, 32)


def test_inspect_tells_the_types_that_are_in_the_file(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    export_gguf(weights, tmp_path / "model.gguf", tokenizer=byte_tokenizer(), kind="q8_0")
    found = inspect(open_weights(tmp_path / "model.gguf"))
    assert found.dtypes["Q8_0"] > 0
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert found.bytes == sum(int(tensor.n_bytes) for tensor in reader.tensors)
