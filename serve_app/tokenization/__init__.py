"""Text to tokens and back: the chat template, encoding, and what each message costs."""
