"""Folders and files of results: runs, checkpoints, tar shards, published checkpoints."""
