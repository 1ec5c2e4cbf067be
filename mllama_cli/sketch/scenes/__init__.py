"""Drawings and out-of-domain images, from seeds to pixels."""
