"""What the user sees and types. Rich and prompt_toolkit; knows no torch."""
