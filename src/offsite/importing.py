"""The earlier home of :func:`offsite.import_peft`, kept for scripts that import it from here."""

from offsite.tuner.importing import import_peft

__all__ = ["import_peft"]
