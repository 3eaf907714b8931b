"""What Redis does of a conversation in one step, in Lua. Each script checks before its first write."""
