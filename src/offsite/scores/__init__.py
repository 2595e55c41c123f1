"""The scores, their statistics, and their sources: offsite's own tasks or lm-eval."""
