"""A transformers model as *ends + one list of blocks*: found, cut, joined, stored and replayed.

Knows no party: nothing here has heard of owners, tuners, offers or deltas.
"""
