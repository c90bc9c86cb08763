"""The vector-quantised autoencoder behind all trained tokenizers: model, losses, training task, encode and decode."""
