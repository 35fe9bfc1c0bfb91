"""What torch.compile costs at the start of decoding, and gives afterwards, at 124M parameters.

    uv run python benchmarks/compile.py

One decoding step at 64 tokens, random weights, of four forms: the engine's own; the same with every product through
``torch.nn.functional.linear``, which the compiler can see into (the engine's kernels are opaque to it: packed weights
must be constants of its graph); and this compiled, what stands before attention and what stands after it, with the
sizes left dynamic so that it serves prompts and batches, and again for a fixed size. Each form is a process of its own;
medians of 60 steps, three processes each in turns. The first call's time is that of compiling, without a cache on disk.

Results go to ``benchmarks/results``: compile.md and .png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORMS = ("the engine's kernels", "plain products", "plain products, compiled", "plain products, compiled for one row")
DTYPES = ("float32", "bfloat16")


def measure(form: str, dtype: str) -> dict[str, float]:
    """Return the seconds of the first step and the median of the following ones."""
    import torch
    from torch.nn import functional as F

    from gpt_core import GPT_CONFIG_124M, GPTModel, initialize_gpt2, quantize
    from gpt_core.inference import Chunk, InferenceModel
    from gpt_core.prepare import prepare

    torch.manual_seed(0)
    model = GPTModel({**GPT_CONFIG_124M, "qkv_bias": True, "tie_weights": True}).eval()
    initialize_gpt2(model, seed=0)

    class Plain:
        """The products as the compiler wants them."""

        def __init__(self, weight: Any, bias: Any) -> None:
            self.weight = weight.detach().to(getattr(torch, dtype))
            self.bias = None if bias is None else bias.detach().to(getattr(torch, dtype))

        def __call__(self, x: Any) -> Any:
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

        def gelu(self, x: Any) -> Any:
            return F.gelu(self(x), approximate="tanh")

        def add(self, x: Any, residual: Any) -> Any:
            return residual + self(x)

    inference: InferenceModel
    if form == FORMS[0]:
        inference = prepare(model) if dtype == "float32" else quantize(model, dtype)
    else:
        def make_head(head: Any, embedding: Any) -> Any:
            return Plain(head, None), lambda ids: embedding.detach()[ids]

        inference = prepare(model, make_product=Plain, make_head=make_head, dtype=torch.float32)
    cache = inference.new_cache(n_slots=1, capacity=128)
    inference.logits([Chunk(0, 0, list(range(64)), 1)], cache)
    if "compiled" in form:
        compile_parts(inference, dynamic=form == FORMS[2])

    def step() -> float:
        start = time.perf_counter()
        inference.logits([Chunk(0, 64, [5], 1)], cache)
        return time.perf_counter() - start

    first = step()
    return {"first": first, "step": statistics.median(step() for _ in range(60))}


def compile_parts(inference: Any, *, dynamic: bool) -> None:
    """Compile what each block does before and after attention, by replacing its products with compiled closures."""
    import torch

    def before(product: Any, x: Any, scale: Any, shift: Any) -> Any:
        return product(torch.nn.functional.layer_norm(x, scale.shape, scale, shift, 1e-5))

    def after(context: Any, x: Any, block: Any) -> Any:
        x = block.out.add(context, x)
        normed = torch.nn.functional.layer_norm(x, block.norm2[0].shape, *block.norm2, 1e-5)
        return block.down.add(block.up.gelu(normed), x)

    before, after = (torch.compile(part, dynamic=dynamic or None) for part in (before, after))
    compute = type(inference)

    class Compiled(compute):  # type: ignore[misc, valid-type]
        """The same pass with its two parts of a block compiled."""

        def _logits(self, chunks: Any, cache: Any) -> Any:
            from gpt_core.inference import _Step

            step = _Step.of(chunks, self.config, self.device)
            opened = [cache.open(chunk.slot, chunk.start, len(chunk.ids)) for chunk in chunks]
            x = self._tok_emb(step.ids) + self._pos_emb[step.positions]
            for layer, block in enumerate(self._blocks):
                context = self._attend(before(block.qkv, x, *block.norm1), layer, step, opened)
                x = after(context, x, block)
            return self._head(self._norm(x, self._final_norm)).float()

    for block in inference._blocks:  # a JoinedLinear decides at run time; the compiler wants the product itself
        object.__setattr__(block, "qkv", block.qkv._joined)
    inference.__class__ = Compiled


def main() -> int:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return 0
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for dtype in DTYPES:
            for form in FORMS:
                with tempfile.TemporaryDirectory() as folder:
                    result = subprocess.run(
                        [sys.executable, __file__, "--one", form, dtype], capture_output=True, text=True, check=True,
                        encoding="utf-8", env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder})
                runs.setdefault((dtype, form), []).append(json.loads(result.stdout.splitlines()[-1]))
                print(dtype, form, runs[dtype, form][-1], file=sys.stderr)
    import torch

    how = f"medians of {options.repeats} processes in turns" if options.repeats > 1 else "one process each"
    lines = ["# torch.compile and decoding", "",
             f"124M parameters, one token at 64, torch {torch.__version__}, {os.cpu_count()} cores; {how}.", "",
             "| dtype | form | first step, s | later steps, ms | of the engine's |",
             "| --- | --- | ---: | ---: | ---: |"]
    medians = {key: {name: statistics.median(run[name] for run in each) for name in ("first", "step")}
               for key, each in runs.items()}
    for (dtype, form), found in medians.items():
        ratio = found["step"] / medians[dtype, FORMS[0]]["step"]
        lines.append(f"| {dtype} | {form} | {found['first']:.2f} | {found['step'] * 1e3:.1f} | {ratio:.2f} |")
    text = "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "compile.md").write_text(text, encoding="utf-8")
    print(text)
    plot(medians, options.out / "compile.png")
    return 0


def plot(medians: dict[tuple[str, str], dict[str, float]], path: Path) -> None:
    """Draw the time of a step in each form."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 2.6), dpi=90, layout="constrained")
    axis.barh([f"{form}, {dtype}" for dtype, form in medians][::-1],
              [found["step"] * 1e3 for found in medians.values()][::-1])
    axis.set_xlabel("ms a step")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
