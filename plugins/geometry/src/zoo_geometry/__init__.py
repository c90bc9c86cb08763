"""The geometry family of the tokenizer zoo."""
