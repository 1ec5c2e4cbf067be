"""What ``mllama bench`` measures."""
