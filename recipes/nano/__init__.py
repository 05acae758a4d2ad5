"""How nano, the small model that this package ships, was made."""
