"""Files, adapters and Hub repositories."""
