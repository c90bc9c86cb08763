"""Settings and the contents of JSON files as records; limits; the opening of files."""
