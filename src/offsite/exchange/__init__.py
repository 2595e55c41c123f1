"""What crosses between the parties (offers, deltas), what may return, and what stays (the record).

Everything that arrives from outside is judged here, before anything is trusted.
"""
