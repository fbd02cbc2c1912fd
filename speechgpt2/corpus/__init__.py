"""Training data: formats, corpora on disk, their synthesis, and the batches that trainers draw from them."""
