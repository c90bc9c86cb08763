"""The only training loop of tokenizers and of what is tuned for a task; its settings, its state, its report."""
