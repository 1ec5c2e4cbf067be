"""A conversation as a person has it: the live chat, its commands, saved chats and their export."""
