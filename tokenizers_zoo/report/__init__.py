"""The pages that people read of the zoo and of each tokenizer; HTML and PNG."""
