"""Values and tokens on disk: tar shards of values, shards of token blocks, both aligned by key."""
