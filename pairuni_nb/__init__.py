"""Pair-GRPO for unified vision-language models, told in notebooks."""

__version__ = "0.1.0"
