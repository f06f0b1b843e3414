"""Scores while a training runs: of its averaged generator, by the protocol of `ganfast eval`."""

import torch
from torch import nn

from ganfast.config import Config
from ganfast.data.manifest import PackInfo
from ganfast.errors import InputError
from ganfast.evaluate.evaluation import Evaluation, open_reference
from ganfast.evaluate.extractors import find_extractor
from ganfast.evaluate.sources import Generated

CLASS_SCORES = ("classifier_score", "label_accuracy", "kl_uniform", "kl_data", "modes")
LOWER_IS_BETTER = ("frechet", "kernel", "kl_uniform", "kl_data")


class Scorer:
    """Scores generators against a reference that is read once, from the same latents every time.

    It consumes no randomness of the training: a resumed run scores and trains like any other.

    Args:
        config: of the run, with nothing automatic left.
        info: of the pictures it is trained on.
        device: where features are computed.

    Raises:
        InputError: an extractor or data that cannot be used, or a score that the extractor lacks.
    """

    def __init__(self, config: Config, info: PackInfo, device: torch.device) -> None:
        self.config, self.info, c = config, info, config.score
        # The training hashes its own pack in a thread.
        how = config.data_options() | {"rules": info.rules, "verify": False}
        pack, held_out = open_reference(config.data, info.size, info.channels, **how)
        extractor = find_extractor(c.extractor, pack, device, preprocessing=c.preprocessing)
        self.evaluation = Evaluation(pack, held_out, extractor, c.count)
        if c.by in CLASS_SCORES and not extractor.judges_labels:
            raise InputError(
                f"score.by is {c.by}, but {extractor.name} names no classes of {info.name}: "
                "give frechet, or another extractor"
            )
        if c.by == "label_accuracy" and config.conditional == "no":
            raise InputError(
                "score.by is label_accuracy, but this generator draws no class on request: "
                "give frechet, or --conditional auto"
            )

    def __call__(self, average: nn.Module, images: int) -> tuple[dict[str, float], str]:
        """Scores of a generator in evaluation mode after ``images`` reals, and their protocol."""
        info, c = self.info, self.config
        classes = info.classes if c.conditional != "no" else ()
        shape = info.size, info.size, info.channels
        source = Generated(average, c.net.latent, shape, classes, seed=0, psi=1.0)
        source.facts |= {"ema": True, "images": images}
        result = self.evaluation.score(source)
        return result.scores, result.protocol_id

    @property
    def lower_is_better(self) -> bool:
        return self.config.score.by in LOWER_IS_BETTER
