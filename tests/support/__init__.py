"""What tests share: tiny models, pictures, methods, forged exchanges, a model hub."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Runs a command; returns its exit status, standard output and standard error."""
