"""The error type of the package, and the checks that raise it in a ``__post_init__``."""


class OffsiteError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence (or two) that says what was given, what is allowed and what to do
    instead. It never quotes private text. The command line prints it and exits with status 2.
    """


class MissingExtraError(OffsiteError):
    """A command needs an optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'offsite[{extra}]'."
        )


def require(condition: bool, message: str) -> None:
    """Raise :class:`OffsiteError` with ``message`` unless ``condition``."""
    if not condition:
        raise OffsiteError(message)


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator cannot take."""
    require(0 <= seed < 2**32, f"{seed} is not a seed; use a whole number from 0 to 2**32 - 1.")
