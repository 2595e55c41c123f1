"""The one error type of the package."""


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
