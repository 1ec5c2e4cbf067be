"""From stored tensors into a network, and what is offloaded to host memory."""
