"""The metadata family of the tokenizer zoo."""
