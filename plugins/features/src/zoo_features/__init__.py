"""What pretrained networks see: maps and vectors of features, learnt edges, sentence embeddings."""
