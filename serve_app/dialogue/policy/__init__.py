"""What is done about a turn: the state of a conversation, and rules that decide by it."""
