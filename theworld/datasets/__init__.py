"""Data: physics scenes (``theworld.datasets.physics``) and, later, samples from elsewhere."""
