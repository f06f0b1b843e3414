"""One operation per file: the definition in plain PyTorch, and beside it the kernel that computes the same faster."""
