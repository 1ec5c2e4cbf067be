"""The slash commands of a chat, one file a subject."""
