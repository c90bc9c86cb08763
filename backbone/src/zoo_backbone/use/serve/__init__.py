"""`zoo serve`: a page and a JSON API for a trained model."""
