"""Tokenizers that 4M published: architectures, names of tensors, words."""
