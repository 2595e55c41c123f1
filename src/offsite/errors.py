"""The error type of the package, the checks that raise it, and what tells a lack of memory."""

NO_MEMORY = (  # torch's words: of a CPU, and of a GPU where it has no error of its own for it
    "can't allocate memory", "unable to mmap", "CUDA error: out of memory", "ALLOC_FAILED",
)  # fmt: skip


class OffsiteError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence (or two) that says what was given, what is allowed and what to do
    instead. It never quotes private text. The command line prints it and exits with status 2.
    """


class DoesNotFitError(OffsiteError):
    """What was asked for needs more memory than there is."""


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


def check_share(share: float) -> None:
    """Refuse a share of parameters that a recipe cannot keep."""
    require(0 < share <= 1, f"A share of {share} cannot be kept; use more than 0 and at most 1.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of a GPU ran out; torch says so in words of its own."""
    if isinstance(error, (MemoryError, DoesNotFitError)):
        return True
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
