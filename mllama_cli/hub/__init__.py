"""Model names, downloads, and what is on this machine."""
