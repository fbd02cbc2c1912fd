"""What trainers read: corpora on disk, how they are synthesised, and the batches drawn from them."""
