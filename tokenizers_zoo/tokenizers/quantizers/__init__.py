"""Quantizers: latents to tokens and back, one interface over vector-quantize-pytorch."""
