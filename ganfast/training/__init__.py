"""What a training computes: its state, the loop and the phases of a step. Nothing here touches files of a run."""
