"""Backbones that 4M published (github.com/apple/ml-4m): import and export."""
