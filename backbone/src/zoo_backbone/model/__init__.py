"""The backbone: configuration, embeddings, Transformer, batches, and the folder of a run."""
