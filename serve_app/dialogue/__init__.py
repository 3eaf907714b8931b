"""What the model is asked: the conversation so far, cut to the context, and the turn it becomes."""
