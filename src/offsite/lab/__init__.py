"""The researcher's side: plans, cached cells, rows, and the frontier of a sweep."""
