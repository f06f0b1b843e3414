"""The 1,797 handwritten digits inside scikit-learn, 8x8 in 17 greys: no files, no network."""

import hashlib

import numpy as np

from ganfast.data.pictures import prepare_array
from ganfast.data.source import Selection, Source, Wanted


class Digits(Source):
    kind = "digits"
    flip = False
    name = "digits"

    def natural(self, split: str) -> tuple[int, int]:
        return 1, 16  # twice their own side: room for two halvings in a critic

    def _describe(self, split: str) -> str:
        return "scikit-learn's handwritten digits (1,797 pictures 8x8 grey, 10 classes)"

    def identity(self, wanted: Wanted) -> str:
        # a constant: the set has never changed
        return hashlib.sha256(b"sklearn.datasets.load_digits").hexdigest()

    def select(self, wanted: Wanted) -> Selection:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        side = wanted.size
        return Selection(
            count=len(pictures),
            channels=wanted.channels,
            labels=digits.target.astype(np.int64),
            classes=tuple("0123456789"),
            preparation=f"8x8, grey 0..16 scaled to 0..255; {side}x{side} by bicubic (up)",
            read=lambda start, stop: prepare_array(pictures[start:stop], side, wanted.channels),
        )
