"""The earlier home of :func:`offsite.tuner.importing.import_peft`, for scripts that use it."""

from offsite.tuner.importing import import_peft

__all__ = ["import_peft"]
