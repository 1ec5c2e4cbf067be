"""The slash commands, one file per subject."""
