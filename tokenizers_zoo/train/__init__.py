"""Training loop of tokenizers and probes, and the infrastructure that it shares with the backbone's loop."""
