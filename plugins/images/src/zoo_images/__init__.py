"""The images family of the tokenizer zoo."""
