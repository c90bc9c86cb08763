"""Ready-made bases for plugins: import the family that fits, give it a spec, a reader and a few settings."""
