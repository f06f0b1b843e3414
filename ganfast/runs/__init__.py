"""A run on disk and its life: train, save, resume, check."""
