"""How much the pictures of a batch of fakes differ from each other, beside a batch of reals."""

import torch
from torch import Tensor

_SIDE = 8  # pixels that a thumbnail has at least, where the picture has as many
_LEAST = 1e-3  # distance below which reals count as equal: pictures are in [-1, 1]


def thumbnails(real: Tensor, fake: Tensor) -> Tensor:
    """Every so many-th pixel of both batches (N, C, H, W), (2, N, C, h, w): one launch."""
    step = max(1, min(real.shape[2:]) // _SIDE)
    pixels = slice(step // 2, None, step)
    return torch.stack([x[:, :, pixels, pixels] for x in (real, fake)])


def spread(small: Tensor) -> Tensor:
    """Mean distance of a fake to the fake nearest to it, over that of reals, 0-d.

    Near 0 the generator repeats itself; a collapse to fewer pictures than a batch has lowers it
    too, as does one to a picture a class. Distances between all pairs would not tell ten pictures
    from ten thousand.

    Args:
        small: `thumbnails` of two pictures or more.
    """
    x = small.flatten(2).float()
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # a picture is not its own neighbour
    of_reals, of_fakes = distances.amin(2).mean(1).unbind()
    return of_fakes / of_reals.clamp_min(_LEAST)
