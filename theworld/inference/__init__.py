"""The `TheWorld` pipeline: from an image and a question to an answer."""
