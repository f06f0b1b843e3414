"""Make ganfast/evaluate/mnist_classifier.safetensors, whose scores compare across machines.

python benchmarks/make_mnist_classifier.py [FOLDER WITH mnist/] [FILE]

Six epochs on MNIST's training pictures, seed 0, one thread. Prints accuracy on the test pictures
and the hash that `ganfast/evaluate/extractors.py` expects. Another machine's rounding gives other
weights of the same kind: the committed file counts.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ganfast.data import open_data
from ganfast.evaluate.classifier import accuracy, train_classifier
from ganfast.evaluate.extractor import sha256_of

EPOCHS, SEED = 6, 0
COMMITTED = Path(__file__).parents[1] / "ganfast/evaluate/mnist_classifier.safetensors"


def main() -> None:
    root = sys.argv[1] if len(sys.argv) > 1 else None
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else COMMITTED
    torch.set_num_threads(1)
    net = train_classifier(open_data("mnist", root=root), SEED, EPOCHS, torch.device("cpu"))
    share = accuracy(net, open_data("mnist", split="test", root=root))
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    size = f"{path.stat().st_size:,} bytes"
    print(f"{path}: {size}, test accuracy {share:.2%}, sha256 {sha256_of(path)}")


if __name__ == "__main__":
    main()
