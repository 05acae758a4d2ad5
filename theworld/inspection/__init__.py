"""What a model is and what a call needs, without loading weights."""
