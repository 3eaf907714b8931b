"""What `parley doctor` looks at: whether this machine can serve, with what, and what is missing."""
