"""The endpoints that our own commands ask: prompts with their images in, the engine's events out."""
