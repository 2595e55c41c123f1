"""ScaleOT (arXiv 2412.09812): the LayerReplace step, its training, and what it learnt."""
