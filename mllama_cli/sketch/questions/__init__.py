"""Questions about scenes with their true answers, and how answers are graded."""
