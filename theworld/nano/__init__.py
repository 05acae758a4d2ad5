"""The weights of nano, the small model that this package ships; `recipes/nano` in the repository made them."""
