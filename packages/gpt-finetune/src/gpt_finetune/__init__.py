"""Finetune a GPT: classifiers that do not depend on padding, LoRA, labelled texts without leaks."""

from gpt_finetune.adapter import load_adapter, save_adapter
from gpt_finetune.classifier import Classifier, Prediction, class_logits, load_classifier, with_class_head
from gpt_finetune.classify import (
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    classify_review,
    evaluate_model,
    plot_values,
    train_classifier_simple,
)
from gpt_finetune.duplicates import DuplicateCounts, count_duplicates, duplicate_groups
from gpt_finetune.encode import fold
from gpt_finetune.labelled import LabelledTexts, Template, Texts, read_labelled, read_texts, require_classes
from gpt_finetune.lora import (
    LinearWithLoRA,
    LoRAConfig,
    LoRALayer,
    add_lora,
    lora_parameters,
    remove_lora,
    replace_linear_with_lora,
)
from gpt_finetune.merge import MergedLoRA, merge_lora
from gpt_finetune.rows import LeftOut
from gpt_finetune.spam_data import (
    SpamDataset,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    download_spam_data,
    random_split,
)
from gpt_finetune.split import Split, split_labelled
from gpt_finetune.trained_part import train_only_last_blocks
from gpt_finetune.training import ClassifierConfig, ClassifierReport, Scores, train_classifier

__all__ = [
    "Classifier",
    "ClassifierConfig",
    "ClassifierReport",
    "DuplicateCounts",
    "LabelledTexts",
    "LeftOut",
    "LinearWithLoRA",
    "LoRAConfig",
    "LoRALayer",
    "MergedLoRA",
    "Prediction",
    "Scores",
    "SpamDataset",
    "Split",
    "Template",
    "Texts",
    "add_lora",
    "calc_accuracy_loader",
    "calc_loss_batch",
    "calc_loss_loader",
    "class_logits",
    "classify_review",
    "count_duplicates",
    "create_balanced_dataset",
    "download_and_unzip_spam_data",
    "download_spam_data",
    "duplicate_groups",
    "evaluate_model",
    "fold",
    "load_adapter",
    "load_classifier",
    "lora_parameters",
    "merge_lora",
    "plot_values",
    "random_split",
    "read_labelled",
    "read_texts",
    "remove_lora",
    "replace_linear_with_lora",
    "require_classes",
    "save_adapter",
    "split_labelled",
    "train_classifier",
    "train_classifier_simple",
    "train_only_last_blocks",
    "with_class_head",
]
