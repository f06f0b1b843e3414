"""The pictures of a set that a conditional run never trains on."""

import numpy as np
from numpy.typing import NDArray

from ganfast.config import Config
from ganfast.data.lookup import has_test, recognise
from ganfast.data.pack import Pack, open_data
from ganfast.data.resident import held_out


def held_out_share(config: Config, rules: int) -> float:
    """The share of the training pictures that a run holds out; 0 where the set has a test split,
    and without a task."""
    if config.task.kind == "none" or not config.task.holdout:
        return 0.0
    source = recognise(config.data, config.data_root or None).by_rules(rules)
    return 0.0 if has_test(source) else config.task.holdout


def held_out_pictures(config: Config, pack: Pack) -> tuple[Pack, NDArray[np.int64]]:
    """The set's test split, or the share of the training pictures ``pack`` that the run holds out:
    a pack and positions in it, rising. Without either, all positions of ``pack``.
    """
    info = pack.info
    share = held_out_share(config, info.rules)
    if share:
        return pack, held_out(info.count, share, config.seed).numpy()
    source = recognise(config.data, config.data_root or None).by_rules(info.rules)
    if has_test(source):
        how = config.data_options() | {"rules": info.rules, "verify": False}
        pack = open_data(config.data, split="test", size=info.size, channels=info.channels, **how)
    return pack, np.arange(len(pack.images))
