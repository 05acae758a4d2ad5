"""Training on Hugging Face's Trainer: the configuration, the recipe, and what makes a run safe to kill."""
