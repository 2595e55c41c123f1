"""A transformers model as ends and one list of blocks: find, cut, join, store and replay them.

Knows no party: nothing here has heard of owners, tuners, offers or deltas.
"""
