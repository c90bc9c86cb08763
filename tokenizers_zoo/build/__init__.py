"""Bulk work: make, derive and tokenize values, train the tokenizers that a registry asks for."""
