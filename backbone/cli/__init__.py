"""zoo backbone ..."""
