"""Measures models on the drawn world: suites of prompts, and scorers that see pixels and a scene's description only."""
