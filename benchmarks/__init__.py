"""Scripts that measure what the project claims; each says in its first lines how to run it."""
