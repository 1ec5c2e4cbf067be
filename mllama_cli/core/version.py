"""The version, on the ground floor since clients name it to web servers."""

__version__ = "0.1.0"
