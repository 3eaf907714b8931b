"""What outlives a process: conversations in Redis, the local Redis itself, and API keys."""
