"""offsite: fine-tune a model without its owner seeing the data, or the data's owner the model."""
