"""GradOT (arXiv 2507.04455): the step, and the Kronecker-factored Fisher it scores with."""
