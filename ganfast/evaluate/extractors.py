"""Which feature network a name, a file or a data set means."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ganfast.data import Pack
from ganfast.data.build import Progress
from ganfast.data.source import cache_dir, did_you_mean
from ganfast.errors import InputError
from ganfast.evaluate import inception, squeezenet
from ganfast.evaluate.classifier import FEATURES, Classifier, train_classifier
from ganfast.evaluate.extractor import (
    Extractor,
    NetworkExtractor,
    Preprocessing,
    StackedExtractor,
    check_hash,
    sha256_of,
)
from ganfast.export.session import cpu_session

MNIST_FILE = Path(__file__).with_name(
    "mnist_classifier.safetensors"
)  # made by benchmarks/make_mnist_classifier.py
MNIST_SHA256 = "35fb9c5cf9cc536969f48b379780224d3a983e04d98e358c8a630fb2d2137dbe"
_LOCAL_SEED = 0
_FILES = "SqueezeNet .npz, the FID's Inception .pth, TorchScript .pt, or .onnx"


def find_extractor(
    wanted: str,
    pack: Pack,
    device: torch.device,
    sha256: str = "",
    preprocessing: str = "",
    progress: Progress | None = None,
) -> Extractor:
    """The feature network for pictures like those of ``pack``.

    Args:
        wanted: "auto" (the committed one for MNIST and stacked-mnist, else "local"), "mnist", "local" (a classifier trained on the
            pack, kept in the cache), or a file: .npz of SqueezeNet 1.0, .pth of the FID's Inception-v3, TorchScript .pt, .onnx with
            features as first output.
        pack: the reference pictures.
        sha256: what the file's hash must be, or its first 8 digits and more; "" = any, for a .pth the known one.
        preprocessing: how a TorchScript or ONNX file wants its pictures, see `Preprocessing.parse`.

    Raises:
        InputError: an unknown name, a file of another kind or hash, a set without classes where a classifier needs some.
    """
    info = pack.info
    if Path(wanted).suffix and wanted not in ("auto", "mnist", "local"):
        return _from_file(Path(wanted), device, sha256, preprocessing, info.channels, info.size)
    if sha256 or preprocessing:
        raise InputError(
            f"extractor {wanted} comes with ganfast: a hash and a preprocessing belong to an extractor file"
        )
    if wanted not in ("auto", "mnist", "local"):
        raise InputError(
            f"unknown extractor {wanted!r}{did_you_mean(wanted, ['auto', 'mnist', 'local'])}: expected auto, mnist, local, "
            f"or a file: {_FILES}"
        )
    if wanted == "auto":
        wanted = (
            "mnist" if (info.name, info.size) in (("mnist", 28), ("stacked-mnist", 28)) else "local"
        )
    if wanted == "mnist":
        if info.size != 28:
            raise InputError(
                f"extractor mnist scores 28x28 pictures, and {info.name} has {info.size}x{info.size}: use local"
            )
        digits = committed(device)
        found = StackedExtractor(digits) if info.channels == 3 else digits
        found.judges_labels = (
            info.kind == "stacked-mnist"
            if info.channels == 3
            else info.classes == tuple("0123456789")
        )
        return found
    return _local(pack, device, progress)


def committed(device: torch.device) -> Extractor:
    """The MNIST classifier that comes with ganfast: the only one whose scores are published."""
    extractor = _classifier(
        MNIST_FILE, 28, 1, 10, "mnist-classifier", check_hash(MNIST_FILE, MNIST_SHA256), device
    )
    extractor.published = True
    return extractor


def _classifier(
    path: Path, size: int, channels: int, classes: int, name: str, sha256: str, device: torch.device
) -> Extractor:
    from safetensors.torch import load_file

    net = Classifier(size, channels, classes)
    net.load_state_dict(load_file(path))
    extractor = NetworkExtractor(net, Preprocessing(size, channels), name, sha256, device, FEATURES)
    extractor.judges_labels = True
    return extractor


def _local(pack: Pack, device: torch.device, progress: Progress | None) -> Extractor:
    from safetensors.torch import save_file

    info = pack.info
    if not info.classes:
        raise InputError(
            f"{info.name} has no classes to train a feature network on: give one with --extractor FILE ({_FILES}), or classes: "
            "sub-folders, or --attributes for CelebA"
        )
    epochs = max(3, min(20, 200_000 // info.count))
    made_of = [
        1,
        info.source_hash,
        info.size,
        info.channels,
        info.attributes,
        info.split,
        info.count,
        _LOCAL_SEED,
        epochs,
    ]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    path = cache_dir() / "extractors" / f"{key}.safetensors"
    if not path.exists():
        net = train_classifier(pack, _LOCAL_SEED, epochs, device, progress).to("cpu")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, beside)
        beside.replace(path)
    return _classifier(
        path,
        info.size,
        info.channels,
        len(info.classes),
        "local-classifier",
        sha256_of(path),
        device,
    )


def _from_file(
    path: Path, device: torch.device, sha256: str, preprocessing: str, channels: int, size: int
) -> Extractor:
    if not path.is_file():
        raise InputError(f"extractor {path} does not exist: give a file, or auto, mnist or local")
    if path.suffix not in (".npz", ".pth", ".pt", ".ts", ".onnx"):
        raise InputError(f"extractor {path}: expected {_FILES}")
    if path.suffix in (".npz", ".pth") and preprocessing:
        raise InputError(f"the preprocessing of {path} is fixed, for its network is: leave it out")
    found = check_hash(path, sha256 or (inception.SHA256 if path.suffix == ".pth" else ""))
    if path.suffix == ".npz":
        squeezed = squeezenet.load_squeezenet(path)
        return NetworkExtractor(
            squeezed, squeezenet.PREPROCESSING, "squeezenet-1.0", found, device, squeezenet.FEATURES
        )
    if path.suffix == ".pth":
        net = inception.load_inception(path)
        return NetworkExtractor(
            net, inception.PREPROCESSING, "inception-v3-fid", found, device, inception.FEATURES
        )
    if not preprocessing:
        raise InputError(
            f"{path} needs --preprocessing, such as size=299,channels=3,mean=127.5,std=127.5: nobody can guess it"
        )
    prepare = Preprocessing.parse(preprocessing)
    own = _OnnxNet(path) if path.suffix == ".onnx" else _torchscript(path, device)
    device = torch.device("cpu") if path.suffix == ".onnx" else device
    extractor = NetworkExtractor(own, prepare, path.stem, found, device, 0)
    extractor.dim = extractor(np.zeros((1, size, size, channels), np.uint8)).features.shape[1]
    return extractor


def _torchscript(path: Path, device: torch.device) -> nn.Module:
    try:
        net: nn.Module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from error
    return net


class _OnnxNet(nn.Module):
    """An .onnx file run by ONNX Runtime on the CPU: its first output is the features."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self.session: Any = cpu_session(path)
        except InputError as error:
            raise InputError(f"{path} cannot be the extractor: {error}") from error
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: x.contiguous().numpy()})[0])
