"""What is remembered of a conversation and its user: summaries, recalled turns, facts."""
