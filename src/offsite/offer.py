"""The earlier home of :class:`offsite.Offer`, kept for scripts that import it from here."""

from offsite.exchange.offer import Offer

__all__ = ["Offer"]
