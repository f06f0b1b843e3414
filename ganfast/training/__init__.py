"""What a training computes: its state, loop and phases. Nothing here touches files of a run."""
