"""Personas: who answers, what is understood, and what is done about it, as data in YAML files."""
