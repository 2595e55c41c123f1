"""Language modelling of plain text and of prompts with completions."""

from offsite.tasks.text.causal import CausalText as CausalText
