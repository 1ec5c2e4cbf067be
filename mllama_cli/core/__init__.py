"""Plain data that every room may use: errors, config, conversation, events. Standard library only."""
