"""Model cards, and pushing and pulling offers and deltas by hub name."""
