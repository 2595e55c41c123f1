"""ScaleOT (arXiv 2412.09812): the LayerReplace step, its learning pass, and what a pass leaves."""
