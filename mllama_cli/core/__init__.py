"""Plain data for every room: errors, config, conversation, events. Standard library only."""
