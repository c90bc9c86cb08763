"""The language family of the tokenizer zoo."""
