"""The language of questions and answers."""
