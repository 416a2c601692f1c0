"""Prompt to embeddings: templates, tokens and the language model's hidden states."""
