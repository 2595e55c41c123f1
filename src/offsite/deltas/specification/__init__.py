"""Delta tuning by specification: chosen parameters of the model itself (Ding et al., 2023)."""
