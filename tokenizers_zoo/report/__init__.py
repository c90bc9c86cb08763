"""The pages that people read: of a run, of the zoo; HTML and PNG."""
