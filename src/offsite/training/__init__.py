"""The one training path: options, the loop, its progress bar, and how a run is resumed."""
