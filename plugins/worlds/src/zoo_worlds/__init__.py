"""Small worlds, made from a seed, as sources of the tokenizer zoo."""
