"""Convert images and text to model inputs, and tokens to text."""
