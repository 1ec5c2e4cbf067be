"""Markdown as it streams into a terminal."""
