"""Tokenizers: networks, quantizers, autoencoders, text vocabularies, their scores and exports."""
