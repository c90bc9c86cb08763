"""Earth rasters as modalities of the tokenizer zoo."""
