"""Training with Hugging Face's Trainer: the configuration, the recipe, and checkpoints that survive interruption."""
