"""A conversation as the user has it: the interactive chat, its commands, saved chats and their export."""
