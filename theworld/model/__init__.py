"""The model: configuration, processor, projector and the transformers classes."""
