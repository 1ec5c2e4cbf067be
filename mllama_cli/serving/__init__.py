"""Serve a model over HTTP in the protocols of OpenAI and ollama."""
