"""Delta tuning by addition: new modules or tokens beside the frozen weights (Ding et al., 2023)."""
