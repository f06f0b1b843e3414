"""DiffAugment: a random affine transform of each picture that the critic sees, y = A x + b.

Colour, translation, cutout in this order, each with probability p. Zhao 2020, arXiv:2006.10738; p
is that of Karras 2020, arXiv:2006.06676. Nothing clips, so that with its numbers held fixed a
transform is affine. What the critic's gradient needs is then A and its transpose alone.

A transform is 7 numbers a picture, float32:

    brightness            what is added
    saturation, contrast  factors on the distance to the pixel's grey, and to the picture's mean
    rows, columns         pixels that the picture moves down and to the right
    top, left             of the square that is cut out; outside the picture = none

Pixels that move in, and the square, become 0: grey, as the pictures are in [-1, 1].
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ganfast.tensors import laid_out_like

DRAWN = 10  # uniforms that a transform is made from: 3 for p, then one for each of its numbers


class Transforms:
    """``transforms(uniforms, p)``: transforms of pictures of ``height`` x ``width`` pixels.

    What it needs of constants lies on the device, so that nothing of a step waits for the host.
    """

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        sides = height, width
        # which uniform p is compared with, the number that changes nothing, least number, span
        rows = [(0, 0, -0.5, 1), (0, 1, 0, 2), (0, 1, 0.5, 1)]
        rows += [(1, 0, -_most_moved(side), 2 * _most_moved(side) + 1) for side in sides]
        # anywhere in the picture lies the middle of the square
        rows += [(2, side, -(_cut_out(side) // 2), side + 1 - _cut_out(side) % 2) for side in sides]
        gate, *numbers = zip(*rows, strict=True)
        self._gate = torch.tensor(gate).to(device)
        table = torch.tensor(numbers, dtype=torch.float32).to(device)
        self._off, self._least, self._span = table.unbind()

    def __call__(self, uniforms: Tensor, p: Tensor) -> Tensor:
        """Float32 (..., 7).

        Args:
            uniforms: float32 (..., 10) in [0, 1).
            p: 0-d, on the device of the uniforms; 0 = no transform, 1 = all of each.
        """
        gates = (uniforms[..., :3] < p).index_select(-1, self._gate)
        numbers = torch.addcmul(self._least, self._span, uniforms[..., 3:])
        numbers = torch.cat([numbers[..., :3], numbers[..., 3:].floor()], -1)
        return torch.where(gates, numbers, self._off)


def augmented(x: Tensor, transforms: Tensor) -> Tensor:
    """A x + b, (N, C, H, W) laid out like x, by transforms (N, 7); differentiable by x, as the two
    below are."""
    return _Map.apply(x, transforms, "affine")


def linear(x: Tensor, transforms: Tensor) -> Tensor:
    """A x: what `augmented` makes of a direction."""
    return _Map.apply(x, transforms, "linear")


def transposed(g: Tensor, transforms: Tensor) -> Tensor:
    """A^T g: the gradient by x of a function whose gradient by A x + b is g."""
    return _Map.apply(g, transforms, "transposed")


class _Map(torch.autograd.Function):
    """One of the three maps, whose derivative is another one.

    Autograd's own would scatter pixels, and leave gradients in another layout than pictures.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, transforms: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(transforms)
        ctx.kind = kind
        if kind == "transposed":
            return _laid_out(_coloured(_moved(x, transforms, back=True), transforms), x)
        brightness = transforms[:, 0, None, None, None].to(x.dtype) if kind == "affine" else None
        return _laid_out(_moved(_coloured(x, transforms, brightness), transforms), x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        derivative = linear if ctx.kind == "transposed" else transposed
        return derivative(g, *ctx.saved_tensors), None, None


def _laid_out(y: Tensor, like: Tensor) -> Tensor:
    """y, which is contiguous, laid out like ``like``.

    Of pictures with one channel only the strides tell. A convolution goes by them: a critic would
    compute its first layer in one layout and all others in the other.
    """
    n, c, *sides = y.shape
    if c == 1 and like.stride(1) == 1:
        return y.view(n, *sides, 1).permute(0, 3, 1, 2)
    return laid_out_like(y, like)


def _coloured(x: Tensor, transforms: Tensor, brightness: Tensor | None = None) -> Tensor:
    """Saturation and contrast, a symmetric map whose factors leave a brightness as it is.

    On planes of a channel, as all that follows: on a CPU channels behind each other took 7 times
    as long (96 pictures of 64x64, 3 ms in place of 20).
    """
    x = x.contiguous()
    saturation, contrast = transforms[:, 1:3, None, None, None].to(x.dtype).unbind(1)
    rest = (1 - contrast) * x.mean((1, 2, 3), keepdim=True)
    if brightness is not None:
        rest = rest + brightness
    if x.shape[1] > 1:  # a grey picture has no saturation
        rest = torch.addcmul(rest, contrast * (1 - saturation), x.mean(1, keepdim=True))
        contrast = contrast * saturation
    return torch.addcmul(rest, contrast, x)


def _moved(x: Tensor, transforms: Tensor, back: bool = False) -> Tensor:
    """Translation and cutout; ``back``: transposed. Pixels are gathered, so that none are added up
    in an order that could vary."""
    n, c, *sides = x.shape
    places, inside, square = [], [], []
    for axis, side in enumerate(sides):
        here = torch.arange(side, device=x.device)  # in the result; what lies here comes from there
        moved, begin = transforms[:, 3 + axis, None].long(), transforms[:, 5 + axis, None].long()
        there = here + moved if back else here - moved
        cut = (there if back else here) - begin
        places.append(there.clamp(0, side - 1))
        inside.append((there >= 0) & (there < side))
        square.append(inside[-1] & (cut >= 0) & (cut < _cut_out(side)))
    place = (places[0][:, :, None] * sides[1] + places[1][:, None]).view(n, 1, -1)
    pixels = x.reshape(n, c, -1).gather(2, place.expand(-1, c, -1))
    # What is inside but for the square, as 1 and 0: on a CPU faster than bits.
    seen = _outer(inside, x.dtype) - _outer(square, x.dtype)
    return pixels.view(x.shape) * seen.unsqueeze(1)


def _outer(axes: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    rows, columns = (axis.to(dtype) for axis in axes)
    return rows[:, :, None] * columns[:, None]


def _most_moved(side: int) -> int:
    return int(side / 8 + 0.5)


def _cut_out(side: int) -> int:
    return int(side / 2 + 0.5)
