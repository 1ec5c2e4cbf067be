"""Streaming Markdown in a terminal."""
