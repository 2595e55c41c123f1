"""Delta tuning by reparameterisation: a weight's change in fewer parameters (Ding et al., 2023)."""
