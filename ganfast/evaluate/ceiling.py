"""The ceiling of a Frechet distance: pictures from one Gaussian fitted to the pixels.

A generator worth its training beats it.
"""

import numpy as np
from numpy.typing import NDArray

from ganfast.images import Pictures
from ganfast.latents import Purpose, latents

COMPONENTS = 300
MOST = 2**26  # pixel values that the fit looks at


class PixelGaussian:
    """A Gaussian with mean and 300 largest principal components of pictures uint8 (N, C, H, W)."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        from sklearn.decomposition import PCA

        self.shape = pictures.shape[1:]
        numbers = int(np.prod(self.shape))
        some = pictures[: max(2, min(len(pictures), MOST // numbers))].reshape(-1, numbers)
        components = min(COMPONENTS, numbers, len(some) - 1)
        solver = "covariance_eigh" if numbers <= 1024 else "randomized"
        self.pca = PCA(components, svd_solver=solver, random_state=0)
        self.pca.fit(some.astype(np.float32))

    def draw(self, start: int, stop: int, seed: int) -> Pictures:
        """Pictures start .. stop of a stream, uint8 (N, H, W, C), clipped to 0 .. 255."""
        z = latents(seed, np.arange(start, stop), len(self.pca.components_), Purpose.JUDGE)
        flat = self.pca.mean_ + (z * np.sqrt(self.pca.explained_variance_)) @ self.pca.components_
        pictures = np.rint(flat).clip(0, 255).astype(np.uint8).reshape(-1, *self.shape)
        return pictures.transpose(0, 2, 3, 1)
