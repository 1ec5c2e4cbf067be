"""Saved chats in an SQLite database."""
