"""One operation a file: its definition in plain PyTorch, and the kernel that computes it faster."""
