"""Data shards, loss, schedule and a training loop that resumes bit for bit."""

from gpt_train.book import (
    find_highest_gradient,
    generate_and_print_sample,
    train_model,
    train_model_simple,
)
from gpt_train.config import TrainConfig
from gpt_train.data import GPTDatasetV1, create_dataloader_v1
from gpt_train.errors import DataError
from gpt_train.log import MetricsLog, read_metrics
from gpt_train.loop import StepReport, train
from gpt_train.loss import calc_loss_batch, calc_loss_loader, evaluate_model, sequence_loss
from gpt_train.memory import keep_freed_memory
from gpt_train.optim import make_optimizer
from gpt_train.plot import plot_losses, plot_metrics
from gpt_train.schedule import learning_rate_at
from gpt_train.shard_files import ShardWriter, write_shards
from gpt_train.shards import ShardDataset
from gpt_train.state import TrainState
from gpt_train.step import Loss

__all__ = [
    "DataError",
    "GPTDatasetV1",
    "Loss",
    "MetricsLog",
    "ShardDataset",
    "ShardWriter",
    "StepReport",
    "TrainConfig",
    "TrainState",
    "calc_loss_batch",
    "calc_loss_loader",
    "create_dataloader_v1",
    "evaluate_model",
    "find_highest_gradient",
    "generate_and_print_sample",
    "keep_freed_memory",
    "learning_rate_at",
    "make_optimizer",
    "plot_losses",
    "plot_metrics",
    "read_metrics",
    "sequence_loss",
    "train",
    "train_model",
    "train_model_simple",
    "write_shards",
]
