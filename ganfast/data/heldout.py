"""The pictures of a set that a conditional run never trains on."""

import numpy as np
from numpy.typing import NDArray

from ganfast.config import Config
from ganfast.data.lookup import has_test, recognise
from ganfast.data.pack import Pack, open_data
from ganfast.data.resident import held_out


def held_out_share(config: Config, rules: int) -> float:
    """The share of the training pictures that a run is to hold out; 0 where the set has a test
    split, and without a task. The run records it: a test split that comes later changes nothing."""
    if config.task.kind == "none" or not config.task.holdout:
        return 0.0
    source = recognise(config.data, config.data_root or None).by_rules(rules)
    return 0.0 if has_test(source) else config.task.holdout


def held_out_pictures(config: Config, pack: Pack) -> tuple[Pack, NDArray[np.int64]]:
    """The share of the training pictures ``pack`` that a run recorded, else the set's test split:
    a pack and positions in it, rising. Without either, all positions of ``pack``.
    """
    info, share = pack.info, config.task.holdout
    if share:
        return pack, held_out(info.count, share, config.seed).numpy()
    source = recognise(config.data, config.data_root or None).by_rules(info.rules)
    if has_test(source):
        how = config.data_options() | {"rules": info.rules, "verify": False}
        pack = open_data(config.data, split="test", size=info.size, channels=info.channels, **how)
    return pack, np.arange(len(pack.images))
