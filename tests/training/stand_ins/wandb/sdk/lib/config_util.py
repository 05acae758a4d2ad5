class ConfigError(Exception):
    """Named by Trainer's callback."""
