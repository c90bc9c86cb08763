"""Backbones that 4M published (github.com/apple/ml-4m): opened as ours, and written back."""
