"""Which feature network a name, a file or a data set means."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ganfast import disk
from ganfast.data import Pack, PackInfo
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
from ganfast.outside import plain_file, reading

# Made by benchmarks/make_mnist_classifier.py.
MNIST_FILE = Path(__file__).with_name("mnist_classifier.safetensors")
MNIST_SHA256 = "35fb9c5cf9cc536969f48b379780224d3a983e04d98e358c8a630fb2d2137dbe"
_LOCAL_SEED = 0
_NAMES = ["auto", "mnist", "local"]
_FILES = "SqueezeNet .npz, the FID's Inception .pth, TorchScript .pt, or .onnx"


def find_extractor(
    name: str,
    pack: Pack,
    device: torch.device,
    sha256: str = "",
    preprocessing: str = "",
    progress: Progress | None = None,
    positions: np.ndarray | None = None,
) -> Extractor:
    """The feature network for pictures like those of ``pack``.

    Args:
        name: "auto" (the committed one for MNIST and stacked-mnist, else "local"), "mnist",
            "local" (a classifier trained on the pack, kept in the cache), or a file: .npz of
            SqueezeNet 1.0, .pth of the FID's Inception-v3, TorchScript .pt, .onnx with features as
            first output.
        pack: the reference pictures.
        sha256: hash of the file, or its first 8 digits or more; "" = any, for a .pth the known one.
        preprocessing: what a TorchScript or ONNX file needs, see `Preprocessing.parse`.
        positions: of the pictures in the pack that "local" learns from; None = all.

    Raises:
        InputError: an unknown name, a file of another kind or hash, or a set without classes where
            a classifier needs some.
    """
    info = pack.info
    if Path(name).suffix and name not in _NAMES:
        return _from_file(Path(name), device, sha256, preprocessing, info.channels, info.size)
    if sha256 or preprocessing:
        raise InputError(
            f"extractor {name} comes with ganfast: "
            "a hash and a preprocessing belong to an extractor file"
        )
    if name not in _NAMES:
        raise InputError(
            f"unknown extractor {name!r}{did_you_mean(name, _NAMES)}: "
            f"expected auto, mnist, local, or a file: {_FILES}"
        )
    if name == "auto":
        known = info.name in ("mnist", "stacked-mnist") and info.size == 28
        name = "mnist" if known else "local"
    return _mnist(info, device) if name == "mnist" else _local(pack, device, progress, positions)


def _mnist(info: PackInfo, device: torch.device) -> Extractor:
    if info.size != 28:
        raise InputError(
            f"extractor mnist scores 28x28 pictures, "
            f"and {info.name} has {info.size}x{info.size}: use local"
        )
    extractor = committed(device)
    if info.channels == 3:
        extractor = StackedExtractor(extractor)
        extractor.judges_labels = info.kind == "stacked-mnist"
    else:
        extractor.judges_labels = info.classes == tuple("0123456789")
    return extractor


def committed(device: torch.device) -> Extractor:
    """The MNIST classifier that comes with ganfast: the only one whose scores are published."""
    digest = check_hash(MNIST_FILE, MNIST_SHA256)
    extractor = _classifier(MNIST_FILE, 28, 1, 10, "mnist-classifier", digest, device)
    extractor.published = True
    return extractor


def _classifier(
    path: Path, size: int, channels: int, classes: int, name: str, sha256: str, device: torch.device
) -> Extractor:
    from safetensors.torch import load

    net = Classifier(size, channels, classes)
    with reading(path, problem="is damaged; remove it, to have one trained again"):
        net.load_state_dict(load(plain_file(path, 1 << 30)))
    extractor = NetworkExtractor(net, Preprocessing(size, channels), name, sha256, device, FEATURES)
    extractor.judges_labels = True
    return extractor


def _local(
    pack: Pack, device: torch.device, progress: Progress | None, positions: np.ndarray | None
) -> Extractor:
    from safetensors.torch import save

    info = pack.info
    if not info.classes:
        raise InputError(
            f"{info.name} has no classes to train a feature network on: "
            f"give one with --extractor FILE ({_FILES}), "
            "or classes: sub-folders, or --attributes for CelebA"
        )
    epochs = max(3, min(20, 200_000 // info.count))
    identity = info.pictures_hash or info.source_hash
    pictures = [identity, info.size, info.channels, info.attributes, info.split, info.count]
    pictures += [info.rules] if info.rules > 1 else []  # other rules may find other classes
    if positions is not None:
        pictures += [hashlib.sha256(positions.tobytes()).hexdigest()]
    key = hashlib.sha256(json.dumps([1, *pictures, _LOCAL_SEED, epochs]).encode()).hexdigest()[:16]
    path = cache_dir() / "extractors" / f"{key}.safetensors"
    if not path.exists():
        how = _LOCAL_SEED, epochs, device, progress, positions
        net = train_classifier(pack, *how).to("cpu")
        weights = {name: value.contiguous() for name, value in net.state_dict().items()}
        with disk.replacing(path) as file:
            file.write(save(weights))
    name, classes = "local-classifier", len(info.classes)
    return _classifier(path, info.size, info.channels, classes, name, sha256_of(path), device)


def _from_file(
    path: Path, device: torch.device, sha256: str, preprocessing: str, channels: int, size: int
) -> Extractor:
    if not path.is_file():
        raise InputError(f"extractor {path} does not exist: give a file, or auto, mnist or local")
    if path.suffix not in (".npz", ".pth", ".pt", ".ts", ".onnx"):
        raise InputError(f"extractor {path}: expected {_FILES}")
    if path.suffix in (".npz", ".pth") and preprocessing:
        raise InputError(f"the preprocessing of {path} is fixed, for its network is: leave it out")
    digest = check_hash(path, sha256 or (inception.SHA256 if path.suffix == ".pth" else ""))
    net: nn.Module
    if path.suffix == ".npz":
        net, dim = squeezenet.load_squeezenet(path), squeezenet.FEATURES
        prepare = squeezenet.PREPROCESSING
        return NetworkExtractor(net, prepare, "squeezenet-1.0", digest, device, dim)
    if path.suffix == ".pth":
        net, dim = inception.load_inception(path), inception.FEATURES
        prepare = inception.PREPROCESSING
        return NetworkExtractor(net, prepare, "inception-v3-fid", digest, device, dim)
    if not preprocessing:
        raise InputError(
            f"{path} needs --preprocessing, such as size=299,channels=3,mean=127.5,std=127.5: "
            "nobody can guess it"
        )
    prepare = Preprocessing.parse(preprocessing)
    if path.suffix == ".onnx":
        net, device = _OnnxNet(path), torch.device("cpu")
    else:
        net = _torchscript(path, device)
    extractor = NetworkExtractor(net, prepare, path.stem, digest, device, 0)
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
