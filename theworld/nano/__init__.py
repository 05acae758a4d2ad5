"""How the shipped `nano` model is made, stage by stage, and its weights."""
