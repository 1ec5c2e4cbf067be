"""What a person sees. Rich and prompt_toolkit; knows no torch."""
