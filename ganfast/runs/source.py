"""A run's generator as a source of pictures to be scored."""

from ganfast.device import find_device, prepared
from ganfast.evaluate.sources import Generated
from ganfast.models import build_generator
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.run import Run
from ganfast.training.state import load_module


def of_run(
    run: Run, checkpoint: str, seed: int, psi: float, device: str, ema: bool = True
) -> Generated:
    """The averaged generator of a run's checkpoint ("" = the newest), or the trained one as it is."""
    path = run.find(checkpoint)
    net = build_generator(run.spec())
    part = "ema" if ema else "generator"
    record, contents = checkpoints.read(path, [part])
    load_module(net, contents[part], f"{path} holds another {part}")
    images = record.images
    net = prepared(net, find_device(device)).eval().requires_grad_(False)
    size, channels = run.data["size"], run.data["channels"]
    made = Generated(net, run.config.net.latent, (size, size, channels), run.classes, seed, psi)
    made.name = f"{run.folder}" + (f" at {images / 1000:g} kimg" if checkpoint else "")
    made.facts |= {"ema": ema, "images": images}
    return made
