"""The commands of ``gpt-eval``, one a module; ``gpt_eval.cli`` imports the one that is asked for."""
