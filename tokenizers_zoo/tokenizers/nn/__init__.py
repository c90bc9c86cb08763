"""Encoder and decoder blocks for vectors and for values with one to three axes."""
