"""Images and text to tensors, tokens to text."""
