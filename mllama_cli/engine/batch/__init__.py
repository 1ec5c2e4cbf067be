"""Many requests answered together."""
