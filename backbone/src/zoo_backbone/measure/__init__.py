"""Figures of backbones: the records of evaluations, and the pages and comparisons that show them."""
