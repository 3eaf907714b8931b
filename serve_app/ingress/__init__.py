"""HTTP in, tokens out, and the token stream back into text."""
