"""Finetune a GPT: classifiers that do not depend on padding, LoRA, labelled texts without leaks."""
