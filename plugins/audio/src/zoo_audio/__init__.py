"""Sound as a modality of the tokenizer zoo."""
