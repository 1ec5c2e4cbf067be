"""The network in plain torch. Caches are passed in; the network has no state."""
