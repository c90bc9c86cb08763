"""The photos family of the tokenizer zoo."""
