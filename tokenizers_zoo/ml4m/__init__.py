"""Checkpoints that EPFL and Apple published for 4M (github.com/apple/ml-4m): their files, and what is in them."""

from tokenizers_zoo.ml4m.source import PublishedCheckpoint, read_published, write_published

__all__ = ["PublishedCheckpoint", "read_published", "write_published"]
