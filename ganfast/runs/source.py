"""A run's generator as a source of pictures to be scored."""

from ganfast.device import find_device, prepared
from ganfast.evaluate.sources import Generated
from ganfast.models import build_generator
from ganfast.runs.run import Run
from ganfast.training.state import load_module


def of_run(
    run: Run, checkpoint: str, seed: int, psi: float, device: str, ema: bool = True
) -> Generated:
    """The averaged generator of a run's checkpoint ("" = the newest), or the trained one itself."""
    path, part = run.find(checkpoint), "ema" if ema else "generator"
    record, tensors = run.part(path, part)
    net = build_generator(run.spec())
    load_module(net, tensors, f"{path} holds another {part}")
    net = prepared(net, find_device(device)).eval().requires_grad_(False)
    shape = run.data["size"], run.data["size"], run.data["channels"]
    source = Generated(net, run.config.net.latent, shape, run.classes, seed, psi)
    source.name = f"{run.folder}" + (f" at {record.images / 1000:g} kimg" if checkpoint else "")
    source.facts |= {"ema": ema, "images": record.images}
    return source
