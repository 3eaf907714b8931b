"""Typed messages between the deployments, one file per hop."""
