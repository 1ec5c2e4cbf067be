"""The interactive chat, its slash commands, saved chats and their export."""
