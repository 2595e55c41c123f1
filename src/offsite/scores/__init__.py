"""The scores, their statistics, and where they come from: own tasks or lm-eval."""
