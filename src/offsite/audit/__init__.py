"""What leaks: from an offer to a data owner who attacks it, and from a delta to a model owner."""
