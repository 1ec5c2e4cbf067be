"""The measurements of ``mllama bench``."""
