"""Generation at GPT-2's 124M shape: ours against transformers, llms-from-scratch, ctranslate2, llama.cpp, onnxruntime.

    uv pip install --no-deps --target PEERS ctranslate2 pyyaml llms-from-scratch gguf \\
        onnx onnx-ir onnxscript onnxruntime ml_dtypes protobuf flatbuffers
    CMAKE_ARGS=-DGGML_NATIVE=ON uv pip install --no-deps --target PEERS llama-cpp-python diskcache   # 10 minutes
    PYTHONPATH=PEERS uv run python benchmarks/generation.py --models MODELS

All have the same random weights, which the first call writes to MODELS in each one's own format (3 GB, 2 minutes).
They are drawn as transformers does, the blocks' matrices then made three times as large: as drawn, the model repeats
the prompt's last token for ever, and any arithmetic, however coarse, gives the same answer. All decode greedily, with
one thread a core; times include the prompt. Each measurement is a process of its own and the contenders take turns
(A B C A B C ...), so that a disturbance of the machine hits all of them; medians count, and only ratios within one run.
A contender that is not installed is left out, by name.

    one        a prompt of 32 tokens, 64 new ones
    batch      8 prompts of 5 to 64 tokens, 64 new ones each
    prompt     the first token of a 512-token prompt
    bandwidth  bytes of weights that decoding reads a second, beside what a sum over 1 GiB reads
    quantize   how long gpt_core.quantize takes

Start-up (from the process's start to the first token of the 32-token prompt, files in the system's cache) and peak
memory come with all of them. A process in whose time others used more than a tenth of the cores is measured again (on
Linux, up to three times). "keeps" is the number of new tokens before the first one that differs from transformers'
float32 answer to that prompt alone; of the 8, the mean. transformers and onnxruntime get the batch padded on the left;
llms-from-scratch takes prompts of one length only and is left out of it. llama.cpp in float32 has a float32 cache,
otherwise its default.

Results go to ``benchmarks/results``: generation.json, .md and .png.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peak_memory import peak_memory

LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 12, 768, 12, 50257, 1024
N_NEW = 64
LENGTHS = (5, 12, 19, 27, 36, 45, 54, 64)
SCENARIOS = ("one", "batch", "prompt", "bandwidth", "quantize")
BASE = "transformers, float32"

Ids = list[list[int]]
Run = Callable[[Ids, int], Ids]
"""Prompts and the number of new tokens to the new tokens of each."""


def prompts_of(lengths: Sequence[int]) -> Ids:
    """Return random prompts of these lengths; each depends on its own length alone."""
    return [[random.Random(length).randrange(VOCABULARY) for _ in range(length)] for length in lengths]


# ------------------------------------------------------------------------------------------------ model files

def write_models(models: Path) -> None:
    """Draw the weights and write them in the format of each installed contender; what is there already stays."""
    models.mkdir(parents=True, exist_ok=True)
    for name, package, write in (
        ("transformers", "transformers", write_transformers),
        ("ours", "gpt-core", write_ours),
        ("ctranslate2-float32", "ctranslate2", lambda source, path: write_ctranslate2(source, path, "float32")),
        ("ctranslate2-int8", "ctranslate2", lambda source, path: write_ctranslate2(source, path, "int8")),
        ("f32.gguf", "gguf", lambda source, path: write_gguf(source, path, "F32")),
        ("bf16.gguf", "gguf", lambda source, path: write_gguf(source, path, "BF16")),
        ("q8_0.gguf", "gguf", lambda source, path: write_gguf(source, path, "Q8_0")),
        ("onnx", "onnxscript", write_onnx),
        ("answers.json", "transformers", write_answers),
    ):
        path, partial = models / name, models / f"partial-{name}"
        if path.exists() or not is_installed(package):
            continue
        print(f"writing {name}", file=sys.stderr)
        if partial.is_dir():  # an earlier call was interrupted
            shutil.rmtree(partial)
        write(models / "transformers", partial)
        partial.rename(path)


def write_transformers(_source: Path, path: Path) -> None:
    """Draw the model and save it with a tokenizer of 50,257 made-up tokens, which converters ask for."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".h." in name and parameter.ndim == 2:
                parameter.mul_(3.0)
    model.save_pretrained(path)
    tokens = {token: i for i, token in enumerate(made_up_tokens())}
    (path / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")


def made_up_tokens() -> list[str]:
    """Return as many different strings as GPT-2 has tokens, its end of text the last."""
    return [*(f"t{i}" for i in range(VOCABULARY - 1)), "<|endoftext|>"]


def book_weights(source: Path) -> dict[str, Any]:
    """Return transformers' weights under the book's names; the head is tied to ``tok_emb.weight``."""
    import safetensors.torch

    theirs = {name.removeprefix("transformer."): tensor
              for name, tensor in safetensors.torch.load_file(source / "model.safetensors").items()}
    ours = {"tok_emb.weight": theirs["wte.weight"], "pos_emb.weight": theirs["wpe.weight"],
            "final_norm.scale": theirs["ln_f.weight"], "final_norm.shift": theirs["ln_f.bias"]}
    for layer in range(LAYERS):
        old, new = f"h.{layer}.", f"trf_blocks.{layer}."
        for part in ("weight", "bias"):
            joined = theirs[f"{old}attn.c_attn.{part}"].chunk(3, dim=-1)
            for name, tensor in zip(("query", "key", "value"), joined, strict=True):
                ours[f"{new}att.W_{name}.{part}"] = tensor.t().contiguous() if part == "weight" else tensor
            for name, module in (("att.out_proj", "attn.c_proj"), ("ff.layers.0", "mlp.c_fc"),
                                 ("ff.layers.2", "mlp.c_proj")):
                tensor = theirs[f"{old}{module}.{part}"]
                ours[f"{new}{name}.{part}"] = tensor.t().contiguous() if part == "weight" else tensor
        for norm in ("1", "2"):
            ours[f"{new}norm{norm}.scale"] = theirs[f"{old}ln_{norm}.weight"]
            ours[f"{new}norm{norm}.shift"] = theirs[f"{old}ln_{norm}.bias"]
    return ours


def book_config() -> dict[str, Any]:
    """Return the shape as the book writes it."""
    return {"vocab_size": VOCABULARY, "context_length": CONTEXT, "emb_dim": WIDTH, "n_heads": HEADS,
            "n_layers": LAYERS, "drop_rate": 0.0, "qkv_bias": True}


def write_ours(source: Path, path: Path) -> None:
    """Save a checkpoint directory."""
    from gpt_core import GPTModel, save_checkpoint

    model = GPTModel({**book_config(), "tie_weights": True})
    weights = book_weights(source)
    model.load_state_dict({**weights, "out_head.weight": weights["tok_emb.weight"]})
    save_checkpoint(path, model)


def write_ctranslate2(source: Path, path: Path, dtype: str) -> None:
    """Convert with ctranslate2's own converter."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(path), quantization=dtype)


def write_gguf(source: Path, path: Path, dtype: str) -> None:
    """Write llama.cpp's format, as its own converter does for GPT-2: matrices in ``dtype``, the rest float32."""
    import gguf
    import safetensors.numpy

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    kind = gguf.GGMLQuantizationType[dtype]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if dtype == "F32" else f"MOSTLY_{dtype}"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(made_up_tokens())
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["t 0"])  # at least one must be there
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm",
             "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
             "mlp.c_proj": "ffn_down"}
    for name, tensor in safetensors.numpy.load_file(source / "model.safetensors").items():
        module, part = name.removeprefix("transformer.").rsplit(".", 1)
        prefix = ""
        if module.startswith("h."):
            _, layer, module = module.split(".", 2)
            prefix = f"blk.{layer}."
            tensor = tensor.T.copy()  # transformers keeps (in, out)
        use = kind if tensor.ndim == 2 and module != "wpe" else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{prefix}{names[module]}.{part}", gguf.quants.quantize(tensor, use), raw_dtype=use)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(source: Path, path: Path) -> None:
    """Export one step: ids (B, T), positions (B, T), mask (B, 1, T, S) and the cache to last logits and the cache."""
    import torch
    from torch.nn import functional as F

    weights = torch.nn.ParameterDict({name.replace(".", "_"): w for name, w in book_weights(source).items()})

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = weights

        def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
            return F.linear(x, self.weights[f"{name}_weight"], self.weights[f"{name}_bias"])

        def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, (WIDTH,), self.weights[f"{name}_scale"], self.weights[f"{name}_shift"])

        def forward(
            self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, past: list[torch.Tensor]
        ) -> tuple[torch.Tensor, ...]:
            w = self.weights
            x = w["tok_emb_weight"][ids] + w["pos_emb_weight"][positions]
            B, T, _ = x.shape
            present = []
            for layer in range(LAYERS):
                name = f"trf_blocks_{layer}"
                y = self.norm(x, f"{name}_norm1")
                queries, keys, values = (self.linear(y, f"{name}_att_W_{part}").view(B, T, HEADS, -1).transpose(1, 2)
                                         for part in ("query", "key", "value"))
                keys = torch.cat([past[2 * layer], keys], dim=2)
                values = torch.cat([past[2 * layer + 1], values], dim=2)
                present += [keys, values]
                scores = queries @ keys.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + mask
                y = (scores.softmax(-1) @ values).transpose(1, 2).reshape(B, T, WIDTH)
                x = x + self.linear(y, f"{name}_att_out_proj")
                y = self.linear(self.norm(x, f"{name}_norm2"), f"{name}_ff_layers_0")
                x = x + self.linear(F.gelu(y, approximate="tanh"), f"{name}_ff_layers_2")
            return F.linear(self.norm(x[:, -1], "final_norm"), w["tok_emb_weight"]), *present

    any_size = torch.export.Dim.DYNAMIC
    names = [f"{kind}{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
    cache = [torch.zeros(2, HEADS, 5, WIDTH // HEADS) for _ in names]
    path.mkdir()
    torch.onnx.export(
        Step().eval(), (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64),
                        torch.zeros(2, 1, 3, 8), cache),
        path / "model.onnx", dynamo=True, external_data=True, opset_version=20,
        input_names=["ids", "positions", "mask", *(f"past_{name}" for name in names)],
        output_names=["logits", *(f"present_{name}" for name in names)],
        dynamic_shapes=({0: any_size, 1: any_size}, {0: any_size, 1: any_size},
                        {0: any_size, 2: any_size, 3: any_size}, [{0: any_size, 2: any_size} for _ in names]))


def write_answers(source: Path, path: Path) -> None:
    """Keep transformers' float32 answers, each prompt alone."""
    run = transformers_gpt2(source.parent, "float32")
    prompts = prompts_of([32, *LENGTHS])
    path.write_text(json.dumps([run([prompt], N_NEW)[0] for prompt in prompts]), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ contenders

def ours(models: Path, dtype: str) -> Run:
    """gpt_core's engine."""
    from gpt_core import generate_batch, load_checkpoint, quantize

    model: Any = load_checkpoint(models / "ours").model
    if dtype != "as loaded":
        model = quantize(model, dtype)

    def run(prompts: Ids, n: int) -> Ids:
        return [[token.id for token in answer] for answer in generate_batch(model, prompts, max_new_tokens=n)]

    return run


def transformers_gpt2(models: Path, dtype: str) -> Run:
    """Hugging Face's GPT2LMHeadModel with its dynamic cache, shorter prompts padded on the left."""
    import torch
    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel.from_pretrained(models / "transformers", dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # nothing ends early

    def run(prompts: Ids, n: int) -> Ids:
        ids, mask = padded(prompts)
        found = model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
                               max_new_tokens=n, pad_token_id=VOCABULARY - 1)
        return found[:, -n:].tolist()

    return run


def padded(prompts: Ids) -> tuple[Ids, Ids]:
    """Return the prompts filled up on the left to one length, and the mask of what is real."""
    longest = max(map(len, prompts))
    return ([[VOCABULARY - 1] * (longest - len(prompt)) + prompt for prompt in prompts],
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def llms_from_scratch(models: Path) -> Run:
    """The book's GPTModel and generate_text_simple, one prompt at a time.

    Without a cache: the package's cached model cuts its mask along the wrong side and fails at the second token.
    """
    import torch
    from llms_from_scratch.ch04 import GPTModel, generate_text_simple

    model = GPTModel(book_config()).eval()
    weights = book_weights(models / "transformers")
    # Not strict: its masks are buffers, which it makes itself.
    model.load_state_dict({**weights, "out_head.weight": weights["tok_emb.weight"]}, strict=False)

    def run(prompts: Ids, n: int) -> Ids:
        return [generate_text_simple(model, torch.tensor([prompt]), n, CONTEXT)[0, -n:].tolist() for prompt in prompts]

    return run


def ctranslate2_generator(models: Path, dtype: str) -> Run:
    """CTranslate2's Generator."""
    import ctranslate2

    generator = ctranslate2.Generator(
        str(models / f"ctranslate2-{dtype}"), compute_type=dtype, inter_threads=1, intra_threads=os.cpu_count() or 1)
    tokens = made_up_tokens()

    def run(prompts: Ids, n: int) -> Ids:
        found = generator.generate_batch(
            [[tokens[i] for i in prompt] for prompt in prompts], min_length=n, max_length=n, sampling_topk=1,
            beam_size=1, include_prompt_in_result=False)
        return [result.sequences_ids[0] for result in found]

    return run


def llama_cpp(models: Path, dtype: str) -> Run:
    """llama.cpp through its C interface, by token ids."""
    import llama_cpp as c
    import numpy as np

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    c.llama_backend_init()
    file = str(models / f"{dtype}.gguf").encode()
    model = c.llama_model_load_from_file(file, c.llama_model_default_params())
    contexts: dict[int, Any] = {}

    def context_for(n_sequences: int) -> Any:
        if n_sequences not in contexts:
            params = c.llama_context_default_params()
            # Of its own for each sequence; 128 hold the longest prompt of the batch and its answer.
            params.n_ctx = 1024 if n_sequences == 1 else 128 * n_sequences
            params.n_seq_max = n_sequences
            params.n_threads = params.n_threads_batch = os.cpu_count() or 1
            if dtype == "f32":
                params.type_k = params.type_v = c.GGML_TYPE_F32
            contexts[n_sequences] = c.llama_init_from_model(model, params)
        return contexts[n_sequences]

    def decode(context: Any, batch: Any, chunks: Ids, starts: list[int]) -> list[int]:
        """Add each sequence's tokens to its cache and return the next of each."""
        row, last = 0, []
        for sequence, (chunk, start) in enumerate(zip(chunks, starts, strict=True)):
            for offset, token in enumerate(chunk):
                batch.token[row], batch.pos[row] = token, start + offset
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                batch.logits[row] = offset == len(chunk) - 1
                row += 1
            last.append(row - 1)
        batch.n_tokens = row
        if c.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return [int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (VOCABULARY,)).argmax()) for i in last]

    def run(prompts: Ids, n: int) -> Ids:
        context = context_for(len(prompts))
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch = c.llama_batch_init(sum(map(len, prompts)), 0, 1)
        starts = [len(prompt) for prompt in prompts]
        found = [[token] for token in decode(context, batch, prompts, [0] * len(prompts))]
        for _ in range(n - 1):
            for answer, token in zip(found, decode(context, batch, [a[-1:] for a in found], starts), strict=True):
                answer.append(token)
            starts = [start + 1 for start in starts]
        c.llama_batch_free(batch)
        return found

    return run


def onnxruntime_session(models: Path) -> Run:
    """onnxruntime on a graph exported by torch.onnx; the cache stays in its own tensors from step to step."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = ort.InferenceSession(str(models / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    past = [value.name for value in session.get_inputs() if value.name.startswith("past")]

    def run(prompts: Ids, n: int) -> Ids:
        rows, real = (np.array(part, dtype=np.int64) for part in padded(prompts))
        B, found, ids = len(prompts), [], rows
        positions = np.maximum(real.cumsum(1) - 1, 0)
        hidden = np.where(real[:, None, None] == 1, 0, -1e9).astype(np.float32)          # (B, 1, 1, T)
        mask = hidden + np.triu(np.full((ids.shape[1],) * 2, -1e9, dtype=np.float32), 1)  # (B, 1, T, T)
        empty = np.zeros((B, HEADS, 0, WIDTH // HEADS), dtype=np.float32)
        cache = [ort.OrtValue.ortvalue_from_numpy(empty) for _ in past]
        while True:
            binding = session.io_binding()
            for name, array in (("ids", ids), ("positions", positions), ("mask", mask)):
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for name, value in zip(past, cache, strict=True):
                binding.bind_ortvalue_input(name, value)
            for value in session.get_outputs():
                binding.bind_output(value.name)
            session.run_with_iobinding(binding)
            logits, *cache = binding.get_outputs()
            found.append(logits.numpy().argmax(-1))
            if len(found) == n:
                return np.stack(found, axis=1).tolist()
            ids, positions = found[-1][:, None], positions[:, -1:] + 1
            hidden = np.concatenate([hidden, np.zeros((B, 1, 1, 1), dtype=np.float32)], axis=3)
            mask = hidden

    return run


@dataclass(frozen=True)
class Contender:
    """One way to generate."""

    package: str
    """The distribution that it needs."""

    make: Callable[[Path], Run]
    """Loads the model from the folder of model files."""

    weight_bytes: float | None
    """What a step reads for each weight; None if it computes more than the new token."""

    is_ragged: bool = True
    """Whether it takes prompts of several lengths at once."""


CONTENDERS: dict[str, Contender] = {
    "ours, float32": Contender("gpt-core", lambda models: ours(models, "as loaded"), 4),
    "ours, float32 packed": Contender("gpt-core", lambda models: ours(models, "float32"), 4),
    "ours, bfloat16": Contender("gpt-core", lambda models: ours(models, "bfloat16"), 2),
    "ours, int8": Contender("gpt-core", lambda models: ours(models, "int8"), 1 + 4 / WIDTH),
    BASE: Contender("transformers", lambda models: transformers_gpt2(models, "float32"), 4),
    "transformers, bfloat16": Contender("transformers", lambda models: transformers_gpt2(models, "bfloat16"), 2),
    "llms-from-scratch, float32": Contender("llms-from-scratch", llms_from_scratch, None, is_ragged=False),
    "ctranslate2, float32": Contender("ctranslate2", lambda models: ctranslate2_generator(models, "float32"), 4),
    "ctranslate2, int8": Contender("ctranslate2", lambda models: ctranslate2_generator(models, "int8"), 1 + 4 / WIDTH),
    "onnxruntime, float32": Contender("onnxruntime", onnxruntime_session, 4),
    "llama.cpp, float32": Contender("llama-cpp-python", lambda models: llama_cpp(models, "f32"), 4),
    "llama.cpp, bfloat16": Contender("llama-cpp-python", lambda models: llama_cpp(models, "bf16"), 2),
    # One 2-byte scale for each 32 weights.
    "llama.cpp, q8_0": Contender("llama-cpp-python", lambda models: llama_cpp(models, "q8_0"), 34 / 32),
}

N_WEIGHTS = VOCABULARY * WIDTH + LAYERS * 12 * WIDTH**2
"""Weights of the matrices that a step reads whole: the head, and 12 D^2 in each block."""


# ------------------------------------------------------------------------------------------------ measuring

def is_installed(package: str) -> bool:
    """Say whether the distribution is there."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def seconds_of(run: Run, prompts: Ids, n: int, *, at_least: float = 2.0) -> tuple[float, Ids]:
    """Return the median of the calls that fit into ``at_least`` seconds, after a short one, and the answers."""
    run(prompts, min(n, 2))
    seconds: list[float] = []
    while not seconds or (sum(seconds) < at_least and len(seconds) < 9):
        start = time.perf_counter()
        answers = run(prompts, n)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), answers


def measure(contender: str, models: Path, scenarios: Sequence[str], started: float) -> dict[str, Any]:
    """Measure one contender in this process, which the caller started at ``started`` (time.time())."""
    run = CONTENDERS[contender].make(models)
    one, batch, long = prompts_of([32]), prompts_of(LENGTHS), prompts_of([512])
    run(one, 1)
    result: dict[str, Any] = {"start": time.time() - started}
    if "one" in scenarios or "bandwidth" in scenarios:
        whole, answers = seconds_of(run, one, N_NEW)
        first, _ = seconds_of(run, one, 1, at_least=0.5)
        result |= {"one": N_NEW / whole, "answers": answers}
        if CONTENDERS[contender].weight_bytes is not None:
            result["step"] = (whole - first) / (N_NEW - 1)
        result["peak_one"] = peak_memory() / 2**30
    if "prompt" in scenarios:
        result["prompt"] = seconds_of(run, long, 1)[0]
    if "batch" in scenarios and CONTENDERS[contender].is_ragged:
        seconds, answers = seconds_of(run, batch, N_NEW)
        result |= {"batch": len(batch) * N_NEW / seconds, "batch_answers": answers}
    result["peak"] = peak_memory() / 2**30
    return result


def read_bandwidth() -> dict[str, float]:
    """Return the bytes a second that a sum over 1 GiB of float32 reads, the median of 15."""
    import torch

    numbers, seconds = torch.ones(2**28), []
    for _ in range(16):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return {"bandwidth": numbers.nbytes / statistics.median(seconds[1:])}


def quantize_seconds(models: Path) -> dict[str, float]:
    """Return how long quantizing the loaded checkpoint takes, by dtype."""
    from gpt_core import load_checkpoint, quantize

    model, seconds = load_checkpoint(models / "ours").model, {}
    for dtype in ("bfloat16", "int8"):
        start = time.perf_counter()
        quantize(model, dtype)
        seconds[dtype] = time.perf_counter() - start
    return seconds


def in_a_process(*arguments: str) -> Any:
    """Call this script in a new process and return what it prints last."""
    command = [sys.executable, __file__, *arguments, "--started", str(time.time())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def undisturbed(*arguments: str) -> Any:
    """Measure in a new process, again if others were busy; return the least disturbed result, with "others" in it."""
    found: list[dict[str, Any]] = []
    for _ in range(3):
        start, before, own = time.perf_counter(), busy_seconds(), os.times()
        result = in_a_process(*arguments)
        after = os.times()
        own_seconds = (after.children_user - own.children_user) + (after.children_system - own.children_system)
        n_seconds = (time.perf_counter() - start) * (os.cpu_count() or 1)
        found.append({**result, "others": max(0.0, busy_seconds() - before - own_seconds) / n_seconds})
        if found[-1]["others"] <= 0.1:
            break
    return min(found, key=lambda result: result["others"])


def busy_seconds() -> float:
    """Return how long the cores have worked since the machine started, for any process; 0 where Linux does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def mean_kept(answers: Ids, expected: Ids) -> float:
    """Return how many tokens come before the first that differs from what is expected, the mean over the answers."""
    return statistics.mean(
        next((i for i, pair in enumerate(zip(answer, right, strict=True)) if pair[0] != pair[1]), len(right))
        for answer, right in zip(answers, expected, strict=True))


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every installed contender in turns."""
    names = [name for name in options.contenders if is_installed(CONTENDERS[name].package)]
    for name in options.contenders:
        if name not in names:
            print(f"{name}: {CONTENDERS[name].package} is not installed and left out", file=sys.stderr)
    in_a_process("--models", str(options.models), "--write-models")
    expected = json.loads((options.models / "answers.json").read_text(encoding="utf-8"))
    models = ("--models", str(options.models))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    machine: list[dict[str, float]] = []
    for number in range(options.repeats):
        machine.append({})
        if "bandwidth" in options.scenarios:
            machine[-1] |= undisturbed(*models, "--read-bandwidth")
        if "quantize" in options.scenarios:
            machine[-1] |= undisturbed(*models, "--quantize")
        for name in names:
            found = undisturbed(*models, "--contender", name, "--scenarios", *options.scenarios)
            for key, right in (("answers", expected[:1]), ("batch_answers", expected[1:])):
                if key in found:
                    found[key.replace("answers", "keeps")] = mean_kept(found.pop(key), right)
            runs[name].append(found)
            print(number + 1, name, {key: round(value, 3) for key, value in found.items()}, file=sys.stderr)
    packages = {CONTENDERS[name].package for name in names} | {"torch"}
    return {"repeats": options.repeats, "python": platform.python_version(), "cores": os.cpu_count(),
            "versions": {package: importlib.metadata.version(package) for package in sorted(packages)},
            "machine": medians(machine), "rows": [{"contender": name, **medians(runs[name])} for name in names]}


def medians(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the median of each measured number, and all of them."""
    return {**{key: statistics.median(run[key] for run in runs) for key in runs[0]},
            "all": {key: [round(run[key], 4) for run in runs] for key in runs[0]}}


# ------------------------------------------------------------------------------------------------ report

AIMS = (
    ("ours, float32", "one", BASE, "2.1"),
    ("ours, float32", "one", "ctranslate2, float32", "1"),
    ("ours, float32 packed", "one", BASE, ""),
    ("ours, bfloat16", "one", BASE, "2.5"),
    ("ours, int8", "one", "ctranslate2, int8", "1.5"),
    ("ours, int8", "one", "llama.cpp, q8_0", "0.65"),
    ("ours, float32", "one", "llama.cpp, float32", ""),
    ("ours, bfloat16", "one", "llama.cpp, bfloat16", ""),
    ("ours, float32", "one", "onnxruntime, float32", ""),
    ("ours, float32", "batch", BASE, "1.8"),
    ("ours, float32", "batch", "onnxruntime, float32", ""),
    ("ours, float32 packed", "batch", "onnxruntime, float32", ""),
    ("ours, bfloat16", "batch", "llama.cpp, bfloat16", ""),
    ("ours, float32", "prompt", BASE, "at most 0.7"),
)
"""Ours, a scenario, whom it is compared with, and the ratio it was built to reach."""


def as_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = {row["contender"]: row for row in report["rows"]}
    lines = ["# Generation at 124M parameters", "",
             f"Python {report['python']}, {report['cores']} cores; "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
             + f". Median of {report['repeats']} processes in turns; greedy; the same random weights for all.", "",
             f"\"keeps\": of the {N_NEW} new tokens, how many come before the first that differs from transformers' "
             "float32 answer to that prompt alone; of the batch's 8 answers, the mean.", "",
             f"Others used at most {max(max(row['all']['others']) for row in rows.values()):.0%} of the cores."]

    def table(title: str, head: Sequence[str], cells: Callable[[dict[str, Any]], list[str]], needs: str) -> None:
        chosen = [row for row in rows.values() if needs in row]
        if chosen:
            lines.extend(["", f"## {title}", "", "| " + " | ".join(head) + " |",
                          "| --- |" + " ---: |" * (len(head) - 1)])
            lines.extend("| " + " | ".join([row["contender"], *cells(row)]) + " |" for row in chosen)

    def ratio(row: dict[str, Any], key: str) -> str:
        return f"{row[key] / rows[BASE][key]:.2f}" if BASE in rows else ""

    table(f"One prompt of 32 tokens, {N_NEW} new ones", ["contender", "tokens/s", "of transformers, float32", "keeps"],
          lambda row: [f"{row['one']:.1f}", ratio(row, "one"), str(round(row["keeps"]))], "one")
    table(f"8 prompts of {', '.join(map(str, LENGTHS))} tokens, {N_NEW} new ones each",
          ["contender", "tokens/s in all", "of transformers, float32", "keeps"],
          lambda row: [f"{row['batch']:.1f}", ratio(row, "batch"), f"{row['batch_keeps']:.1f}"], "batch")
    table("First token of a 512-token prompt", ["contender", "seconds", "of transformers, float32"],
          lambda row: [f"{row['prompt']:.3f}", ratio(row, "prompt")], "prompt")
    table("Start-up and memory",
          ["contender", "from the process's start to the first token, s", "peak after one prompt, GiB",
           "peak after all, GiB"],
          lambda row: [f"{row['start']:.2f}", f"{row['peak_one']:.2f}" if "peak_one" in row else "",
                       f"{row['peak']:.2f}"], "start")
    if "bandwidth" in report["machine"]:
        limit = report["machine"]["bandwidth"]
        table(f"Share of the machine's memory bandwidth: a sum over 1 GiB reads {limit / 1e9:.1f} GB/s",
              ["contender", "MB of weights a step", "ms a step", "GB/s", "share"],
              lambda row: bandwidth_cells(row, limit), "step")
    if "int8" in report["machine"]:
        lines += ["", f"Quantizing takes {report['machine']['bfloat16']:.2f} s to bfloat16, "
                      f"{report['machine']['int8']:.2f} s to int8."]
    ratios = [aim for aim in AIMS if aim[1] in rows.get(aim[0], {}) and aim[2] in rows]
    if ratios:
        lines += ["", "## Ratios within this run", "", "| contender | scenario | against | ratio | wanted |",
                  "| --- | --- | --- | ---: | ---: |"]
        lines += [f"| {name} | {key} | {other} | {rows[name][key] / rows[other][key]:.2f} | {aim} |"
                  for name, key, other, aim in ratios]
    return "\n".join(lines) + "\n"


def bandwidth_cells(row: dict[str, Any], limit: float) -> list[str]:
    """Return what a step of batch 1 reads, how long it takes, and that as a share of ``limit``."""
    n_bytes = N_WEIGHTS * (CONTENDERS[row["contender"]].weight_bytes or 0)
    rate = n_bytes / row["step"]
    return [f"{n_bytes / 1e6:.0f}", f"{row['step'] * 1e3:.1f}", f"{rate / 1e9:.1f}", f"{rate / limit:.2f}"]


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw a panel of bars for each scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"one": "one prompt, tokens/s", "batch": "8 ragged prompts, tokens/s in all",
              "prompt": "first token of a 512-token prompt, seconds"}
    panels = [key for key in titles if any(key in row for row in report["rows"])]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels) + 2, 4), dpi=90, layout="constrained", sharey=True, squeeze=False)
    for key, axis in zip(panels, axes[0], strict=True):
        rows = [row for row in report["rows"] if key in row][::-1]
        colours = ["tab:orange" if row["contender"].startswith("ours") else "tab:blue" for row in rows]
        axis.barh([row["contender"] for row in rows], [row[key] for row in rows], color=colours)
        axis.set_title(titles[key], fontsize=10)
    figure.savefig(path)


def main() -> int:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder for the model files; kept between calls")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    for step in ("--write-models", "--read-bandwidth", "--quantize"):
        parser.add_argument(step, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_models:
        write_models(options.models)
        print("{}")
        return 0
    if options.read_bandwidth:
        print(json.dumps(read_bandwidth()))
        return 0
    if options.quantize:
        print(json.dumps(quantize_seconds(options.models)))
        return 0
    if options.contender:
        print(json.dumps(measure(options.contender, options.models, options.scenarios, options.started)))
        return 0
    report = run_all(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "generation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "generation.md").write_text(as_table(report), encoding="utf-8")
    print(as_table(report))
    plot(report, options.out / "generation.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
