"""What draws the pictures of a bundle. The sampler owns batching, latents and threads; a back end runs one batch."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """One engine on one device. The graph's inputs are z, labels (where there are classes) and psi, its output is images."""

    name: str  # "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "rtx" or "torch-cpu", "torch-cuda"

    def run(
        self, z: NDArray[np.float32], labels: NDArray[np.int64] | None, psi: NDArray[np.float32]
    ) -> NDArray[np.uint8]:  # pictures (B, H, W, C)
        """Draw z (B, latent), labels (B,) or None for a bundle without classes, psi (B,)."""
        ...
