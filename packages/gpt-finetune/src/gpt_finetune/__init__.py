"""Finetune a GPT: chat models, preferences, classifiers that do not depend on padding, LoRA."""

from gpt_finetune.adapter import load_adapter, save_adapter
from gpt_finetune.book_preference import (
    PreferenceDataset,
    collate_preferences,
    compute_dpo_loss,
    compute_dpo_loss_batch,
    compute_dpo_loss_loader,
    compute_logprobs,
    evaluate_dpo_loss_loader,
    train_model_dpo_simple,
)
from gpt_finetune.chat import Answer, ChatModel, load_chat_model
from gpt_finetune.chat_batches import ChatBatches, ChatExamples, encode_conversations
from gpt_finetune.chat_training import ChatConfig, chat_loss, train_chat
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
from gpt_finetune.conversation import Conversation, Message
from gpt_finetune.conversation_files import Conversations, read_conversations
from gpt_finetune.duplicates import DuplicateCounts, count_duplicates, duplicate_groups
from gpt_finetune.encode import fold
from gpt_finetune.instruct import (
    InstructionDataset,
    InstructionDatasetPhi,
    InstructionDatasetWithMasking,
    custom_collate_draft_1,
    custom_collate_draft_2,
    custom_collate_fn,
    custom_collate_with_masking_fn,
    format_input,
    format_input_phi,
)
from gpt_finetune.instruction_data import download_and_load_file
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
from gpt_finetune.preference import Preference, Preferences
from gpt_finetune.preference_files import read_preferences
from gpt_finetune.preference_loss import PreferenceScores
from gpt_finetune.preference_pairs import PreferencePairs, encode_preferences
from gpt_finetune.preference_training import PreferenceConfig, PreferenceReport, train_preferences
from gpt_finetune.rows import LeftOut
from gpt_finetune.spam_data import (
    SpamDataset,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    download_spam_data,
    random_split,
)
from gpt_finetune.split import Split, split_labelled
from gpt_finetune.template import TEMPLATES, ChatTemplate, Control, Turn
from gpt_finetune.trained_part import train_only_last_blocks
from gpt_finetune.training import ClassifierConfig, ClassifierReport, Scores, train_classifier
from gpt_finetune.vocabulary import with_vocabulary

__all__ = [
    "TEMPLATES",
    "Answer",
    "ChatBatches",
    "ChatConfig",
    "ChatExamples",
    "ChatModel",
    "ChatTemplate",
    "Classifier",
    "ClassifierConfig",
    "ClassifierReport",
    "Control",
    "Conversation",
    "Conversations",
    "DuplicateCounts",
    "InstructionDataset",
    "InstructionDatasetPhi",
    "InstructionDatasetWithMasking",
    "LabelledTexts",
    "LeftOut",
    "LinearWithLoRA",
    "LoRAConfig",
    "LoRALayer",
    "MergedLoRA",
    "Message",
    "Prediction",
    "Preference",
    "PreferenceConfig",
    "PreferenceDataset",
    "PreferencePairs",
    "PreferenceReport",
    "PreferenceScores",
    "Preferences",
    "Scores",
    "SpamDataset",
    "Split",
    "Template",
    "Texts",
    "Turn",
    "add_lora",
    "calc_accuracy_loader",
    "calc_loss_batch",
    "calc_loss_loader",
    "chat_loss",
    "class_logits",
    "classify_review",
    "collate_preferences",
    "compute_dpo_loss",
    "compute_dpo_loss_batch",
    "compute_dpo_loss_loader",
    "compute_logprobs",
    "count_duplicates",
    "create_balanced_dataset",
    "custom_collate_draft_1",
    "custom_collate_draft_2",
    "custom_collate_fn",
    "custom_collate_with_masking_fn",
    "download_and_load_file",
    "download_and_unzip_spam_data",
    "download_spam_data",
    "duplicate_groups",
    "encode_conversations",
    "encode_preferences",
    "evaluate_dpo_loss_loader",
    "evaluate_model",
    "fold",
    "format_input",
    "format_input_phi",
    "load_adapter",
    "load_chat_model",
    "load_classifier",
    "lora_parameters",
    "merge_lora",
    "plot_values",
    "random_split",
    "read_conversations",
    "read_labelled",
    "read_preferences",
    "read_texts",
    "remove_lora",
    "replace_linear_with_lora",
    "require_classes",
    "save_adapter",
    "split_labelled",
    "train_chat",
    "train_classifier",
    "train_classifier_simple",
    "train_model_dpo_simple",
    "train_only_last_blocks",
    "train_preferences",
    "with_class_head",
    "with_vocabulary",
]
