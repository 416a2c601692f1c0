"""Fewer bits a weight: formats, the linear layers that multiply with them, and which layers those are."""
