"""Parley: LLM dialogue from a cluster, over HTTP, on Ray Serve."""

__version__ = "0.1.0"
__all__ = ["__version__"]
