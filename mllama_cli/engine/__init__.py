"""Loads a checkpoint and turns conversations into streams of tokens. Knows no screen."""
