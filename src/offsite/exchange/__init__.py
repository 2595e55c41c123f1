"""The folders that the parties exchange (offers, deltas), their contract, and the private record.

Everything from the other party is checked here before it is used.
"""
