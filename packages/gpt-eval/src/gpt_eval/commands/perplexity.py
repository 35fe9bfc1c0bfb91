"""``gpt-eval perplexity``: how well a checkpoint's model predicts texts."""

import argparse
from pathlib import Path

from gpt_eval.commands.model_options import add_model_arguments, device_of, whole
from gpt_eval.commands.report_options import add_report_arguments, give_report, prepare_out
from gpt_eval.provenance import checkpoint_facts, installed_versions
from gpt_eval.terminal import say

SUMMARY = "Measure the perplexity of a checkpoint's model on text files, with an interval."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT_FILE", help="UTF-8; each is scored on its own")
    parser.add_argument("--context-length", type=whole(1), help="tokens of a window (the model's context)")
    parser.add_argument("--stride", type=whole(1), help="tokens that a window moves by (the context: no overlap)")
    parser.add_argument("--batch-size", type=whole(1), default=8, help="windows computed together (8)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the interval's bootstrap (0)")
    add_report_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print the report and save it if asked; return the exit code."""
    texts = [_read(path) for path in options.texts]  # before torch is loaded: a wrong name shows at once
    try:
        from gpt_core import load_checkpoint
        from gpt_eval.text_perplexity import perplexity
    except ImportError as error:
        raise ImportError("perplexity needs a model: install 'gpt-eval[model]'") from error
    from gpt_eval.tokenizer_file import TokenizerFile

    device = device_of(options)
    prepare_out(options)
    checkpoint = load_checkpoint(options.checkpoint, device=device)
    if checkpoint.tokenizer_file is None:
        raise ValueError(f"{checkpoint.folder} holds no tokenizer.json; save the checkpoint with its tokenizer")
    tokenizer = TokenizerFile(checkpoint.tokenizer_file)
    # Without an end of the text to start from, a text's first token has nothing to be predicted from.
    bos_id = tokenizer.eot_token
    ids = [tokenizer.encode(text) for text in texts]
    n_unscored = 0 if bos_id is not None else sum(len(tokenizer.decode_bytes(text[:1])) for text in ids)
    last = -1

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done * 10 // total > last:
            last = done * 10 // total
            say(f"scored {done:,} of {total:,} tokens")

    found = perplexity(
        checkpoint.model, ids, context_length=options.context_length, stride=options.stride, bos_id=bos_id,
        n_bytes=sum(len(text.encode("utf-8")) for text in texts) - n_unscored, batch_size=options.batch_size,
        seed=options.seed, progress=progress,
    )
    report = found.report({
        **checkpoint_facts(checkpoint.folder),
        "texts": [path.name for path in options.texts],
        "versions": installed_versions("gpt-eval", "gpt-core", "torch", "tokenizers"),
    })  # fmt: skip
    give_report(report, options)
    return 0


def _read(path: Path) -> str:
    """Return the file's text exactly, its line ends too."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 at byte {error.start}; convert it") from error
    if not text:
        raise ValueError(f"{path} is empty, so there is nothing to score; leave it out")
    return text
