"""Training: options, the loop, progress, and resuming."""
