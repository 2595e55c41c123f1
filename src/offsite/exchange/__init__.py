"""The folders that the parties exchange (offers, deltas), their contract, and the private record.

Everything that arrives from outside is judged here, before anything is trusted.
"""
