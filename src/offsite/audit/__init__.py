"""Measure leaks: what an attacker recovers from an offer, and what can be read from a delta."""
