"""Data: samples and what they are read from (JSON Lines, Hugging Face datasets, DataComp, physics scenes)."""
