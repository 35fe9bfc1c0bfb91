"""What torch.save wrote comes in: the book's forms, adapters and heads, nanoGPT's; nothing is executed."""

import io
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_core import GPTConfig, GPTModel, GPTModelFast, generate_tokens, load_checkpoint
from gpt_weights import WeightsError, convert, open_weights

CONFIG = GPTConfig(vocab_size=41, context_length=16, emb_dim=24, n_heads=3, n_layers=2)
IDS = torch.arange(16)[None]


def noisy(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    return model.eval()


def assert_loads_as(path: Path, model: nn.Module, *, atol: float = 0.0, **given: Any) -> GPTModel:
    """Convert the file, load the checkpoint and compare its logits with those of the model that was saved."""
    ours = load_checkpoint(convert(open_weights(path, n_heads=3, **given), path.parent / "ours")).model
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS), atol=atol, rtol=0)
    return ours


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_plain_state_dict_gives_the_config_by_its_shapes(qkv_bias: bool, tmp_path: Path) -> None:
    config = GPTConfig(**{**CONFIG.to_dict(), "qkv_bias": qkv_bias})
    model = noisy(GPTModel(config))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert assert_loads_as(tmp_path / "model.pth", model).config == config


def test_a_checkpoint_with_its_optimizer_gives_the_model_alone(tmp_path: Path) -> None:
    model = noisy(GPTModel(CONFIG))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(IDS).sum().backward()
    optimizer.step()
    both = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(both, tmp_path / "model_and_optimizer.pth")
    assert_loads_as(tmp_path / "model_and_optimizer.pth", model)


def test_a_tied_head_is_told_by_the_memory_it_shares(tmp_path: Path) -> None:
    model = noisy(GPTModel(GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True})))
    torch.save(model.state_dict(), tmp_path / "tied.pth")
    assert assert_loads_as(tmp_path / "tied.pth", model).config.tie_weights
    apart = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(apart, tmp_path / "apart.pth")
    assert not open_weights(tmp_path / "apart.pth", n_heads=3).config.tie_weights


def test_the_books_mask_buffers_and_compiled_names_are_known(tmp_path: Path) -> None:
    model = noisy(GPTModel(CONFIG))
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    state["_orig_mod.trf_blocks.0.att.mask"] = torch.triu(torch.ones(16, 16), diagonal=1)
    torch.save(state, tmp_path / "model.pth")
    assert_loads_as(tmp_path / "model.pth", model)


def test_the_books_fast_variant_loads(tmp_path: Path) -> None:
    model = noisy(GPTModelFast({**CONFIG.to_dict(), "qkv_bias": True}))
    torch.save(model.state_dict(), tmp_path / "fast.pth")
    assert_loads_as(tmp_path / "fast.pth", model, atol=1e-5)


def test_chapter_6s_classifier_loads(tmp_path: Path) -> None:
    model = noisy(GPTModel(CONFIG))
    model.out_head = noisy(nn.Linear(24, 2))
    torch.save(model.state_dict(), tmp_path / "review_classifier.pth")
    assert assert_loads_as(tmp_path / "review_classifier.pth", model).config.n_classes == 2


class LinearWithLoRA(nn.Module):
    """Appendix E's layer, with its formula: linear(x) + alpha / rank (x A B)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.lora, self.scale = linear, nn.Module(), alpha / rank
        self.lora.A = nn.Parameter(torch.randn(linear.in_features, rank))
        self.lora.B = nn.Parameter(torch.randn(rank, linear.out_features) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.lora.A @ self.lora.B)


@pytest.mark.parametrize("alpha", [4.0, 16.0])
def test_lora_layers_are_merged_with_the_scale_that_is_given(alpha: float, tmp_path: Path) -> None:
    model = noisy(GPTModel(CONFIG))
    model.out_head = nn.Linear(24, 2)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, LinearWithLoRA):
                setattr(parent, name, LinearWithLoRA(child, rank=4, alpha=alpha))
    torch.save(model.state_dict(), tmp_path / "lora.pth")
    assert_loads_as(tmp_path / "lora.pth", model, atol=1e-4, lora_scale=alpha / 4)
    with pytest.raises(WeightsError, match=r"rank 4, .* lora_scale \(--lora-scale\), .*\(1 for alpha 4\)"):
        open_weights(tmp_path / "lora.pth", n_heads=3)


def test_lora_on_a_tied_head_is_merged_into_a_head_of_its_own(tmp_path: Path) -> None:
    model = noisy(GPTModel(GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True})))
    model.out_head = LinearWithLoRA(model.out_head, rank=4, alpha=4)
    torch.save(model.state_dict(), tmp_path / "lora.pth")
    assert not assert_loads_as(tmp_path / "lora.pth", model, atol=1e-4, lora_scale=1).config.tie_weights


@pytest.mark.parametrize("scale", [math.nan, math.inf, "2", True, 1e300])
def test_a_scale_that_is_no_number_or_too_large_is_refused(scale: Any, tmp_path: Path) -> None:
    model = GPTModel(CONFIG)
    model.out_head = LinearWithLoRA(model.out_head, rank=4, alpha=4)
    torch.save(model.state_dict(), tmp_path / "lora.pth")
    with pytest.raises(WeightsError, match=r"lora_scale must be a finite number|choose a wider type"):
        open_weights(tmp_path / "lora.pth", n_heads=3, lora_scale=scale).model()


def test_a_scale_without_lora_is_refused(tmp_path: Path) -> None:
    torch.save(GPTModel(CONFIG).state_dict(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="holds no LoRA matrices"):
        open_weights(tmp_path / "model.pth", n_heads=3, lora_scale=1.0)


@pytest.mark.parametrize("mapped", [False, True])
def test_mixed_types_become_the_widest_so_that_the_model_computes(mapped: bool, tmp_path: Path) -> None:
    model = noisy(GPTModel(CONFIG))
    state = {n: t.bfloat16() if t.ndim == 2 else t for n, t in model.state_dict().items()}
    torch.save(state, tmp_path / "mixed.pth")
    weights = open_weights(tmp_path / "mixed.pth", n_heads=3)
    assert any("types are mixed (bfloat16, float32)" in note for note in weights.notes)
    ours = weights.model(mapped=mapped)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS), atol=0.05, rtol=0)


def test_a_value_too_large_for_the_type_asked_for_is_refused(tmp_path: Path) -> None:
    state = GPTModel(CONFIG).state_dict()
    state["final_norm.scale"][3] = 1e5
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"final_norm\.scale has values up to 1e\+05, the largest in torch.float16"):
        convert(open_weights(tmp_path / "model.pth", n_heads=3), tmp_path / "ours", dtype=torch.float16)


def test_many_views_of_a_small_storage_are_refused(tmp_path: Path) -> None:
    state = {n: torch.zeros(1).expand(t.shape) if t.ndim == 2 and "trf" in n else t
             for n, t in GPTModel(CONFIG).state_dict().items()}
    big = torch.zeros(1)
    state |= {f"trf_blocks.{n}.ff.layers.0.weight": big.expand(96 + n, 24) for n in range(2, 40)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"its tensors claim .* bytes, the file has"):
        open_weights(tmp_path / "model.pth", n_heads=3)


def test_thousands_of_blocks_are_refused_at_once(tmp_path: Path) -> None:
    state = dict(GPTModel(CONFIG).state_dict()) | {f"trf_blocks.{n}.x": torch.zeros(1) for n in range(2000)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="of 2000 blocks: expected at least 6 of each"):
        open_weights(tmp_path / "model.pth", n_heads=3)


def test_what_holds_itself_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    model = noisy(GPTModel(CONFIG))
    torch.save({"model_state_dict": model.state_dict(), "history": ring}, tmp_path / "model.pth")
    assert_loads_as(tmp_path / "model.pth", model)


def test_a_head_with_a_bias_over_the_vocabulary_is_refused(tmp_path: Path) -> None:
    state = dict(GPTModel(CONFIG).state_dict()) | {"out_head.bias": torch.zeros(41)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"the output head has a bias \(out_head\.bias\)"):
        open_weights(tmp_path / "model.pth", n_heads=3)


class NanoBlock(nn.Module):
    """A block under nanoGPT's names, its sums spelled out with torch's own functions."""

    def __init__(self, E: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(E, bias=bias), nn.LayerNorm(E, bias=bias)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(E, 3 * E, bias=bias), "c_proj": nn.Linear(E, E, bias=bias)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(E, 4 * E, bias=bias), "c_proj": nn.Linear(4 * E, E, bias=bias)})

    def forward(self, x: Tensor) -> Tensor:
        heads = [part.unflatten(-1, (3, -1)).transpose(1, 2) for part in self.attn["c_attn"](self.ln_1(x)).chunk(3, -1)]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attn["c_proj"](mixed)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class NanoGPT(nn.Module):
    def __init__(self, V: int, C: int, E: int, n_layers: int, *, bias: bool) -> None:
        super().__init__()
        parts = {"wte": nn.Embedding(V, E), "wpe": nn.Embedding(C, E), "ln_f": nn.LayerNorm(E, bias=bias)}
        self.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(NanoBlock(E, bias) for _ in range(n_layers))})
        self.lm_head = nn.Linear(E, V, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def save_nanogpt(model: NanoGPT, path: Path, *, V: int, bias: bool) -> None:
    torch.save(
        {
            "model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
            "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
            "model_args": {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 16, "bias": bias, "vocab_size": V,
                           "dropout": 0.0},
            "iter_num": 2000,
            "best_val_loss": torch.tensor(1.5),
            "config": {"dataset": "shakespeare_char", "compile": True},
        },
        path,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_ckpt_gives_its_logits_and_says_its_heads_itself(bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = noisy(NanoGPT(65, 16, 24, 2, bias=bias))
    save_nanogpt(model, tmp_path / "ckpt.pt", V=65, bias=bias)
    weights = open_weights(tmp_path / "ckpt.pt")
    assert (weights.config.n_heads, weights.config.qkv_bias, weights.config.tie_weights) == (3, bias, True)
    assert_loads_as(tmp_path / "ckpt.pt", model, atol=1e-5)
    with pytest.raises(WeightsError, match="has 3 heads, but n_heads=4 was given"):
        open_weights(tmp_path / "ckpt.pt", n_heads=4)


def test_nanogpts_padded_vocabulary_is_cropped_to_gpt2s(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = noisy(NanoGPT(50304, 16, 24, 2, bias=True))
    save_nanogpt(model, tmp_path / "ckpt.pt", V=50304, bias=True)
    weights = open_weights(tmp_path / "ckpt.pt")
    assert weights.notes == ("of 50304 rows of the vocabulary the first 50257 are kept",)
    ours = weights.model()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS)[..., :50257], atol=1e-5, rtol=0)
    assert open_weights(tmp_path / "ckpt.pt", vocab_size=50304).model().config.vocab_size == 50304
    with pytest.raises(WeightsError, match=r"crop the vocabulary to 1\.\.50304 rows, got 50305"):
        open_weights(tmp_path / "ckpt.pt", vocab_size=50305)


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    torch.save(GPTModel(CONFIG).state_dict(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"give n_heads \(--n-heads\), a divisor of 24"):
        open_weights(tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="multiple of n_heads, got emb_dim=24, n_heads=5"):
        open_weights(tmp_path / "model.pth", n_heads=5)


class Gadget:
    """Unpickled without care, it makes the folder that its name says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("where", ["the whole", "beside the weights", "a whole model", "a plain pickle"])
def test_code_in_a_pickle_is_refused_by_name_and_never_run(where: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "model.pth"
    gadget = Gadget(trap)
    state = GPTModel(CONFIG).state_dict()
    if where == "a plain pickle":
        path.write_bytes(pickle.dumps(gadget))
    else:
        contents = {"the whole": gadget, "beside the weights": {"model": state, "config": gadget},
                    "a whole model": NanoBlock(24, True)}
        torch.save(contents[where], path)
    named = {"a plain pickle": "not in torch's zip format", "a whole model": "NanoBlock"}.get(where, "mkdir")
    with pytest.raises(WeightsError, match=named):
        open_weights(path)
    assert not trap.exists()


def rewritten(path: Path, **how: Any) -> None:
    """Write the archive anew with other settings."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_compressed_archive_is_refused_since_it_may_be_a_bomb(tmp_path: Path) -> None:
    torch.save(GPTModel(CONFIG).state_dict(), tmp_path / "model.pth")
    rewritten(tmp_path / "model.pth", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="neither compresses nor encrypts"):
        open_weights(tmp_path / "model.pth", n_heads=3)


def test_a_tensor_that_claims_more_than_the_file_has_is_refused_unread(tmp_path: Path) -> None:
    state = dict(GPTModel(CONFIG).state_dict())
    state["tok_emb.weight"] = torch.zeros(1).expand(10**12, 24)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"tok_emb\.weight claims 96,000,000,000,000 bytes"):
        open_weights(tmp_path / "model.pth", n_heads=3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("trf_blocks.1.ff.layers.0.bias"), "1 of .* missing .*trf_blocks.1.ff.layers.0.bias"),
        (lambda state: state.update({"trf_blocks.1.ff.layer.0.bias": state.pop("trf_blocks.1.ff.layers.0.bias")}),
         "nearest to trf_blocks.1.ff.layer.0.bias is trf_blocks.1.ff.layers.0.bias"),
        (lambda state: state.update({"final_norm.scale": torch.ones(25)}), r"final_norm.scale has shape \(25,\)"),
        (lambda state: state.update({"final_norm.scale": torch.ones(24).int()}), "torch.int32, expected one of"),
        (lambda state: state.update({"pos_emb.weight": torch.ones(())}), "pos_emb.weight must be a matrix"),
        (lambda state: [state.pop(name) for name in list(state) if ".0." in name], "none of block 0"),
        (lambda state: state.pop("tok_emb.weight"), "holds no GPT-2: expected a token embedding"),
        (lambda state: state.update({"tok_emb.weight": "text"}), "'tok_emb.weight' in it is no named tensor"),
        (lambda state: state.update({"final_norm.scale": torch.ones(24).to_sparse()}), "is no plain tensor"),
    ],
)
def test_tensors_that_are_no_gpt2_are_refused_by_name(change: Any, named: str, tmp_path: Path) -> None:
    state = dict(GPTModel(CONFIG).state_dict())
    change(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=named):
        open_weights(tmp_path / "model.pth", n_heads=3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_found_before_anything_is_written(value: float, tmp_path: Path) -> None:
    state = GPTModel(CONFIG).state_dict()
    state["trf_blocks.1.att.out_proj.weight"][3, 5] = value
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"trf_blocks\.1\.att\.out_proj\.weight holds values that are no numbers"):
        convert(open_weights(tmp_path / "model.pth", n_heads=3), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_large_numbers_whose_sum_is_infinite_are_no_fault(tmp_path: Path) -> None:
    state = GPTModel(CONFIG).state_dict()
    state["tok_emb.weight"].fill_(3e38)
    torch.save(state, tmp_path / "model.pth")
    loaded = dict(open_weights(tmp_path / "model.pth", n_heads=3).tensors())
    assert torch.equal(loaded["tok_emb.weight"], state["tok_emb.weight"])


def test_old_archives_and_other_files_are_told_apart(tmp_path: Path) -> None:
    state = GPTModel(CONFIG).state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = io.BytesIO()
    torch.save(state, whole)
    for name, data, named in [
        ("page.pth", b"\n <!DOCTYPE html><html><title>Sign in</title></html>", "is an HTML page, not weights"),
        ("empty.pth", b"", "is empty"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("cut.pth", whole.getvalue()[:-200], "cut off"),
        ("other.zip", zip_of("readme.txt"), "not one that torch.save wrote"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=named):
            open_weights(tmp_path / name)
    with pytest.raises(WeightsError, match="older torch"):
        open_weights(tmp_path / "old.pth")


def zip_of(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, "hello")
    return made.getvalue()


def test_generation_works_from_a_mapped_pth(tmp_path: Path) -> None:
    model = noisy(GPTModel(CONFIG))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    mapped = open_weights(tmp_path / "model.pth", n_heads=3).model(mapped=True)
    expected = [token.id for token in generate_tokens(model, [1, 2], max_new_tokens=8)]
    assert [token.id for token in generate_tokens(mapped, [1, 2], max_new_tokens=8)] == expected
