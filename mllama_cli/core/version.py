"""The version, in the lowest room because web clients of several rooms send it."""

__version__ = "0.2.0"
