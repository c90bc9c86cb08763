"""Retrieval: find samples of any modality by any other."""
