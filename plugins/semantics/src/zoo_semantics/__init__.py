"""The semantics family of the tokenizer zoo."""
