"""Keys, known peers, signatures in the OpenSSF model-signing layout, and encryption to a peer."""
