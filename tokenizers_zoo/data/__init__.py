"""Values and tokens on disk: tar shards of values, Arrow files of tokens, both aligned by key."""

from __future__ import annotations
