"""The hub-data family of the tokenizer zoo: datasets of other programs as sources."""
