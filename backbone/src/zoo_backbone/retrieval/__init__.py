"""Retrieval of any modality by any other: vectors in one space, indexes of them, queries, and how often it is right."""
