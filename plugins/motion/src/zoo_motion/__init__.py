"""Motion as modalities of the tokenizer zoo."""
