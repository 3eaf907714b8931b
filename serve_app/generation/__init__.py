"""The generator: an engine that batches sequences continuously over a backend. It knows tokens, never text."""
