"""The critic of a run: what it says of pictures that it is shown."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganfast.data import Pack, open_data
from ganfast.device import find_device, prepared
from ganfast.errors import InputError
from ganfast.evaluate.sources import shuffled
from ganfast.images import Pictures
from ganfast.kernels.pictures import as_pictures
from ganfast.losses import loss_of
from ganfast.models import build_critic, judge
from ganfast.penalties import input_gradient
from ganfast.training.state import load_module

if TYPE_CHECKING:
    from ganfast.runs.run import Run

Numbers = NDArray[np.float64]
Labels = int | Sequence[int] | NDArray[np.int64] | None
_CHUNK = 32  # pictures a forward pass; always full, so that a score depends on no other picture
_COMPARED = 1000  # reals, and fakes, that a rank is among
_ORDER = 2**31 - 3  # the shuffle that they are taken from


class Judged(NamedTuple):
    """What a critic says of N pictures; float64 (N,) each."""

    score: Numbers  # higher = rather a real
    probability: Numbers | None  # P(real); None where the scores of the run's loss are no logits
    # Share of pictures of the training's data, and of pictures that the averaged generator draws,
    # that score lower: 0 = below all, 1 = above all; ties count half.
    among_reals: Numbers
    among_fakes: Numbers


class Critic:
    """A trained critic in evaluation mode; `Run.critic` makes it.

    Pictures are uint8 (N, H, W, C) of the run's size and channels. ``labels`` is a class for all of
    them, or one for each; a critic that judges a picture as one of its class needs it. A batch norm
    uses the statistics that it kept of reals and fakes, so that a picture's score depends on no
    other one.

    Attributes:
        net: the network; takes_labels: whether it needs classes; checkpoint: where it was read.
    """

    def __init__(self, run: "Run", checkpoint: str, device: str) -> None:
        self.run, self.checkpoint = run, run.find(checkpoint)
        if run.config.task.kind != "none":
            raise InputError(
                f"the critic of {run.folder} judges a picture beside what it was made from, which "
                "nothing here gives it; `ganfast eval` scores such a run"
            )
        if not (self.checkpoint / "critic.safetensors").exists():
            raise InputError(
                f"{self.checkpoint} has no critic.safetensors, so there is no critic to ask; "
                "take a checkpoint as the training wrote it"
            )
        _, tensors = run.part(self.checkpoint, "critic")
        net = build_critic(run.spec())
        load_module(net, tensors, f"{self.checkpoint} holds another critic")
        self.net: nn.Module = prepared(net, find_device(device)).eval().requires_grad_(False)
        self.takes_labels = bool(getattr(self.net, "takes_labels", False))
        self._device = device
        self._known: dict[tuple[str, int | None], Numbers] = {}
        self._packs: dict[tuple[str, str], Pack] = {}

    def score(self, pictures: Pictures, labels: Labels = None) -> Numbers:
        """The score of each picture, float64 (N,): higher = rather a real.

        Raises:
            InputError: pictures of another shape, or classes that are missing, unknown or useless.
        """
        return self._each(pictures, labels, self._scores)

    def gradient(self, pictures: Pictures, labels: Labels = None) -> NDArray[np.float32]:
        """The gradient of each score by its picture in [-1, 1], float32 (N, H, W, C).

        Where it is positive, a brighter pixel would raise the score.
        """
        return self._each(pictures, labels, self._gradients)

    def judge(
        self, pictures: Pictures, labels: Labels = None, data: str = "", root: str = ""
    ) -> Judged:
        """Scores, and ranks among up to 1,000 reals and 1,000 fakes; of one class for a critic
        that judges a picture as one of its class.

        Args:
            data, root: where the reals lie, as of `ganfast.data.open_data`; "" = as in training.

        Raises:
            InputError: the data cannot be read, or has no picture of a class; or as `score`.
        """
        scores, classes = self.score(pictures, labels), self._labels(len(pictures), labels)
        reals, fakes = np.zeros(len(scores)), np.zeros(len(scores))
        for label in [None] if classes is None else map(int, np.unique(classes)):
            rows = slice(None) if classes is None else classes == label
            reals[rows] = ranked(scores[rows], self._of_reals(label, data, root))
            fakes[rows] = ranked(scores[rows], self._of_fakes(label))
        logits = loss_of(self.run.config.loss).probabilities
        return Judged(scores, 1 / (1 + np.exp(-scores)) if logits else None, reals, fakes)

    def _of_reals(self, label: int | None, data: str, root: str) -> Numbers:
        config, data = self.run.config, data or self.run.config.data
        if (data, root) not in self._packs:
            how = config.data_options() | ({"root": root} if root else {})
            how |= {name: self.run.data[name] for name in ("size", "channels")}
            if data == config.data:
                how["rules"] = self.run.data["rules"]
            else:  # another set need not lie, nor be read by the rules of an old run
                how["transpose"] = False
            self._packs[data, root] = open_data(data, **how)
        pack, key = self._packs[data, root], (f"{root}\0{data}", label)
        if key not in self._known:
            order = shuffled(len(pack.images), 0, _ORDER)
            if label is not None:
                labels = np.full(len(order), -1) if pack.labels is None else pack.labels
                order = order[np.asarray(labels)[order] == label]
            if not len(order):
                raise InputError(
                    f"{data} has no picture of class {label}, among which a rank would lie"
                )
            rows = np.sort(order[:_COMPARED])
            reals = np.ascontiguousarray(np.asarray(pack.images[rows]).transpose(0, 2, 3, 1))
            self._known[key] = self.score(reals, label)
        return self._known[key]

    def _of_fakes(self, label: int | None) -> Numbers:
        key = ("", label)
        if key not in self._known:
            labels = None if label is None else [label]
            where = str(self.checkpoint), self._device
            fakes = self.run.sample(_COMPARED, 0, labels, checkpoint=where[0], device=where[1])
            self._known[key] = self.score(fakes, label)
        return self._known[key]

    def _each(
        self, pictures: Pictures, labels: Labels, answer: Callable[[Tensor, Tensor | None], Tensor]
    ) -> NDArray[Any]:
        """What ``answer`` says of the pictures, chunk by chunk."""
        shape = self.run.data["size"], self.run.data["size"], self.run.data["channels"]
        if pictures.ndim != 4 or pictures.shape[1:] != shape or pictures.dtype != np.uint8:
            raise InputError(
                f"pictures are {pictures.dtype} {pictures.shape}; expected uint8 (N, "
                f"{', '.join(map(str, shape))})"
            )
        classes, device = self._labels(len(pictures), labels), next(self.net.parameters()).device
        parts = []
        for start in range(0, len(pictures), _CHUNK):
            chosen = pictures[start : start + _CHUNK]
            full = np.zeros((_CHUNK, *shape), np.uint8)
            full[: len(chosen)] = chosen
            x = as_pictures(torch.from_numpy(full).permute(0, 3, 1, 2).to(device), None)
            y = None
            if classes is not None:
                y = torch.zeros(_CHUNK, dtype=torch.long)
                y[: len(chosen)] = torch.from_numpy(classes[start : start + _CHUNK])
                y = y.to(device)
            parts.append(answer(x, y)[: len(chosen)].cpu().numpy())
        return np.concatenate(parts)

    def _scores(self, x: Tensor, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            return judge(self.net, x, labels).score.double()

    def _gradients(self, x: Tensor, labels: Tensor | None) -> Tensor:
        with torch.enable_grad():
            x.requires_grad_()
            gradient = input_gradient(judge(self.net, x, labels).score, x)
        return gradient.detach().permute(0, 2, 3, 1).contiguous()

    def _labels(self, count: int, labels: Labels) -> NDArray[np.int64] | None:
        run, names = self.run, self.run.class_list()
        if not self.takes_labels:
            if labels is not None:
                raise InputError(
                    f"the critic of {run.folder} judges a picture without a class; "
                    "leave --class out"
                )
            return None
        if labels is None:
            raise InputError(
                f"the critic of {run.folder} judges a picture as one of its class; "
                f"give its class (--class): {names}"
            )
        classes = np.broadcast_to(np.asarray(labels, dtype=np.int64), (count,)).copy()
        for label in np.unique(classes):
            if not 0 <= label < len(run.classes):
                raise InputError(
                    f"there is no class {label}; {run.folder} has {len(run.classes)}: {names}"
                )
        return classes


def ranked(scores: Numbers, others: Numbers) -> Numbers:
    """The share of ``others`` (M,) that lie below each score, ties counted half, (N,)."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    return (below + np.searchsorted(ordered, scores, side="right")) / (2 * len(ordered))


def map_sheet(picture: Pictures, gradient: NDArray[np.float32]) -> Pictures:
    """A picture (H, W, C) and, beside it, its gradient: uint8 (H, 2 W, C).

    Grey = no influence, brighter = a brighter pixel would raise the score. The scale is the
    picture's own: its largest gradient is black or white.
    """
    largest = max(float(np.abs(gradient).max()), 1e-30)
    shown = np.rint(127.5 + 127.5 * (gradient / largest)).astype(np.uint8)
    return np.concatenate([picture, shown], axis=1)
