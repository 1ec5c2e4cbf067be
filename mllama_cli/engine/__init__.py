"""Load a checkpoint and turn conversations into streams of tokens."""
