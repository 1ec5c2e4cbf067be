"""One network over several processes, each with its part of every large matrix."""
