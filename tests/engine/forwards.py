"""Sources of critics whose forwards read and keep Python state, composed at random."""

import random
import textwrap
from dataclasses import dataclass

OBJECTIVES = [
    ("wasserstein", "wgan-gp"),
    ("non-saturating", "r1"),
    ("relativistic", "r1+r2"),
    ("hinge", "none"),
]
STEPS = 3


@dataclass(frozen=True)
class Piece:
    """Source of one thing that a forward reads or keeps. VALUE stands for one of ``values``."""

    body: str  # in the forward: makes features h (N, 4, 4, 3) of h, or of pictures x
    change: str = ""  # between two steps: ``net`` is the critic
    init: str = ""
    top: str = ""  # in the module, before the class
    own: str = ""  # in the class
    keeps: str = ""  # an expression of the state that a step leaves
    values: tuple = (0.6, 1.7, -1.2)


def gain(read, write="", init="", top="", own="", **more):
    """A number, read somewhere, by which features are multiplied."""
    return Piece(f"h = h * ({read})", write, init, top, own, **more)


def side(read="self.side(h)", **more):
    """A branch beside the features, of a layer ``side``."""
    return Piece(f"h = h + {read}", **more)


CLOSURE = """
def gained():
    gain = VALUE
    def read():
        return gain
    def write(value):
        nonlocal gain
        gain = value
    return read, write
READ, WRITE = gained()
"""
PROPERTY = """
@property
def level(self):
    return 0.5 * self.half
"""
BLOCKS = "self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))"
DEPTH = """
for block in self.blocks[: self.depth]:
    h = h + 0.5 * block(F.leaky_relu(h, 0.2))
"""
BRANCH = "h = {} if {} else F.leaky_relu({}, 0.3)"
WIDE = "self.wide = nn.Conv2d(4, 4, 3, padding=VALUE, dilation=VALUE)"
POOLED = "F.adaptive_avg_pool2d({}, (4, 3))"
BOOLS = {"values": (True, False)}
HOOK = "net.first.register_forward_hook(lambda layer, given, made: made * VALUE)"

READS = {
    "attribute": gain("self.scale", "net.scale = VALUE", "self.scale = VALUE"),
    "fade-in": Piece(
        f"h = self.alpha * h + (1 - self.alpha) * self.old({POOLED.format('x')})",
        "net.alpha = VALUE",
        "self.alpha, self.old = VALUE, nn.Conv2d(3, 4, 1)",
        values=(0.0, 0.3, 0.8, 1.0),
    ),
    "option": Piece(
        BRANCH.format("h + self.skipped(h)", "self.skip", "self.skipped(h)"),
        "net.skip = VALUE",
        "self.skip, self.skipped = VALUE, nn.Conv2d(4, 4, 1)",
        **BOOLS,
    ),
    "word": Piece(
        "h = getattr(F, self.word)(h)",
        "net.word = VALUE",
        "self.word = VALUE",
        values=("softplus", "silu", "relu", "elu"),
    ),
    "depth": Piece(DEPTH, "net.depth = VALUE", "self.depth = VALUE\n" + BLOCKS, values=(1, 2, 3)),
    "list": gain("self.gains[1]", "net.gains[1] = VALUE", "self.gains = [2.0, VALUE]"),
    "longer list": gain(
        "sum(self.parts)", "net.parts.append(VALUE)", "self.parts = [VALUE]", values=(1.1, 2.2)
    ),
    "dict": gain("self.table['gain']", "net.table['gain'] = VALUE", "self.table = {'gain': VALUE}"),
    "config": gain(
        "self.config.net.gain",
        "net.config.net.gain = VALUE",
        "self.config = SimpleNamespace(net=SimpleNamespace(gain=VALUE))",
    ),
    "global": gain("GAIN", "GAIN = VALUE", top="GAIN = VALUE"),
    "global config": gain(
        "CONFIG['net'].gain",
        "CONFIG['net'].gain = VALUE",
        top="CONFIG = {'net': SimpleNamespace(gain=VALUE)}",
    ),
    "global tensor": gain("TENSOR", "TENSOR = torch.tensor(VALUE)", top="TENSOR = torch.ones(())"),
    "closure": gain("READ()", "WRITE(VALUE)", top=CLOSURE),
    "class attribute": gain("self.shared", "type(net).shared = VALUE", own="shared = VALUE"),
    "property": gain("self.level", "net.half = VALUE", "self.half = VALUE", own=PROPERTY),
    "function": gain(
        "self.tempered(1.5)", "net.tempered = lambda x: x * VALUE", "self.tempered = math.sqrt"
    ),
    "slope": Piece(
        "h = F.leaky_relu(h, self.slope)",
        "net.slope = VALUE",
        "self.slope = VALUE",
        values=(0.2, 0.01, 0.7),
    ),
    "dilation": side(
        "self.wide(h)",
        change="net.wide.dilation = net.wide.padding = (VALUE, VALUE)",
        init=WIDE,
        values=(1, 2),
    ),
    "upsampling": side(
        POOLED.format("self.up(h)"),
        change="net.up.scale_factor = VALUE",
        init="self.up = nn.Upsample(scale_factor=VALUE)",
        values=(2, 3),
    ),
    "slope of a layer": side(
        "self.leak(h)",
        change="net.leak.negative_slope = VALUE",
        init="self.leak = nn.LeakyReLU(VALUE)",
        values=(0.2, 0.01, 0.7),
    ),
    "another layer": side(
        "self.act(h)",
        change="net.act = nn.VALUE()",
        init="self.act = nn.Tanh()",
        values=("ReLU", "Softplus", "SiLU"),
    ),
    "array": gain("float(ARRAY[0])", "ARRAY[0] = VALUE", top="ARRAY = np.array([VALUE, 1.0])"),
    "array as a tensor": Piece(
        "h = h * torch.from_numpy(ROW)", "ROW[:2] *= VALUE", top="ROW = np.array([1.0, 2.0, 3.0])"
    ),
    "buffer": gain(
        "self.b", "net.b.fill_(VALUE)", "self.register_buffer('b', torch.tensor(VALUE))"
    ),
    "size": gain(
        "self.bank.numel() / 4",
        "net.bank = torch.ones(VALUE)",
        "self.bank = torch.ones(VALUE)",
        values=(4, 5, 7),  # there are 5 pictures
    ),
    "tensor": gain("self.t", "net.t = torch.tensor(VALUE)", "self.t = torch.tensor(VALUE)"),
    "value of a weight": gain("self.first.bias.detach().sum()"),
    "without gradients": Piece(
        "with torch.no_grad():\n    still = self.still(h)\nh = h + still",
        init="self.still = nn.Conv2d(4, 4, 1)",
    ),
    "training": Piece(BRANCH.format("h", "self.training", "2 * h"), "net.train(VALUE)", **BOOLS),
    "gradients enabled": Piece(BRANCH.format("h", "torch.is_grad_enabled()", "2 * h")),
    "count of pictures": gain("len(x) / 4"),
    "hook": Piece("", HOOK),
    "frozen": Piece("", "net.first.bias.requires_grad_(VALUE)", **BOOLS),
    "other memory": Piece("", "net.first.weight.data = net.first.weight.data * VALUE"),
    "another parameter": Piece(
        "", "net.first.bias = nn.Parameter(net.first.bias.detach() * VALUE)"
    ),
    "spectral_norm": side(
        init="self.side = spectral_norm(nn.Conv2d(4, 4, 1))",
        change="net.side.parametrizations.weight.original.data[0] *= VALUE",
    ),
    "weight_norm": side(
        "self.turned(h)",
        init="self.turned = weight_norm(nn.Conv2d(4, 4, 1))",
        change="net.turned.parametrizations.weight.original1.data[0] *= VALUE",
    ),
}


def chance(draw):
    return Piece(BRANCH.format("h", f"{draw} < 0.5", "2 * h"))


def centred(name, update):
    """A running mean in a buffer, which is subtracted."""
    mean = f"self.{name}"
    return Piece(
        f"m = h.detach().mean((0, 2, 3))\nif self.training:\n    {update.format(mean)}\n"
        f"h = h - {mean}.clone()[:, None, None]",
        f"net.{name}[1] = VALUE",
        f"self.register_buffer({name!r}, torch.zeros(4))",
    )


POWER = """
matrix = self.hand.weight.flatten(1)
with torch.no_grad():
    v = F.normalize(matrix.t() @ self.u, dim=0)
    self.u = F.normalize(matrix @ v, dim=0)
h = h + F.conv2d(h, self.hand.weight / (self.u @ (matrix @ v)))
"""
HAND = """
self.hand = nn.Conv2d(4, 4, 1, bias=False)
self.register_buffer("u", F.normalize(torch.ones(4), dim=0))
"""
OWN = """
class Trebled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return 2 * h
    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient
"""
KEEPS = {
    "checkpoint": side("checkpoint(torch.tanh, h, use_reentrant=False)"),
    "own backward": Piece("h = Trebled.apply(h)", top=OWN),
    "hook on features": Piece("h.register_hook(lambda gradient: 2 * gradient)"),
    "vmap": side("torch.vmap(torch.tanh)(h)"),
    "float of a buffer": gain(
        "float(self.f)", "net.f.fill_(VALUE)", "self.register_buffer('f', torch.tensor(VALUE))"
    ),
    "item of a buffer": gain(
        "self.i.item()", "net.i.fill_(VALUE)", "self.register_buffer('i', torch.tensor(VALUE))"
    ),
    "branch on a buffer": Piece(
        BRANCH.format("h", "self.gate > 0", "2 * h"),
        "net.gate.fill_(VALUE)",
        "self.register_buffer('gate', torch.tensor(VALUE))",
    ),
    "branch on features": Piece(BRANCH.format("h", "h.mean() > 0.1", "2 * h")),
    "random": chance("random.random()"),
    "numpy.random": chance("np.random.rand()"),
    "torch.rand": chance("torch.rand(()).item()"),
    "noise": Piece("h = h + torch.rand(4, 1, 1)"),
    "counter": gain(
        "1 + 0.1 * self.calls", "net.calls = int(10 * VALUE)", "self.calls = 0", keeps="net.calls"
    ),
    "global counter": Piece(
        "global CALLS\nCALLS += 1\nh = h * (1 + 0.1 * CALLS)", top="CALLS = 0", keeps="CALLS"
    ),
    "class counter": gain("1 / type(self).count", own="count = 0", keeps="type(net).count"),
    "array counter": gain("1 + 0.1 * COUNTS[0]", top="COUNTS = np.zeros(2)", keeps="COUNTS"),
    "buffer counter": gain(
        "1 + 0.1 * self.ticks", init="self.register_buffer('ticks', torch.zeros(()))"
    ),
    "iterator": gain(
        "next(self.cycle)",
        init="self.cycle = itertools.cycle([0.5, 1.5, 2.5, 0.7, 1.2])",
        keeps="next(net.cycle)",
    ),
    "mean by copy_": centred("mean", "{0}.copy_(0.7 * {0} + 0.3 * m)"),
    "mean by lerp_": centred("lerped", "{0}.lerp_(m, 0.3)"),
    "mean by +=": centred("added", "{0} += 0.3 * (m - {0})"),
    "mean by assignment": centred("assigned", "{0} = 0.7 * {0} + 0.3 * m"),
    "features": Piece("self.features = h", keeps="net.features.detach()"),
    "list of means": Piece("self.seen.append(h.detach().mean())", init="self.seen = []"),
    "list of counts": gain(
        "1 + 0.1 * len(self.log)", init="self.log = []", keeps="torch.tensor(net.log)"
    ),
    "power iteration": Piece(POWER, init=HAND, keeps="net.u"),
}
# What counts is kept before it is read.
BEFORE = {
    "counter": "self.calls += 1",
    "class counter": "type(self).count += 1",
    "array counter": "COUNTS[0] += 1",
    "buffer counter": "self.ticks += 1",
    "list of counts": "self.log.append(len(x))",
}
PIECES = READS | KEEPS

IMPORTS = """
import itertools, math, random
from types import SimpleNamespace
import numpy as np, torch, torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
"""


class Example:
    """A critic's source, what is changed between its steps, and its objective, all of a seed.

    ``only``: names of the pieces, if the seed is not to choose them.
    """

    def __init__(self, seed, only=()):
        draw = random.Random(seed)
        # Every second critic only reads. Kinds come in turn, so that 30 seeds have all of them.
        first, others, count, more = (READS, READS, 3, 0) if seed % 2 else (KEEPS, PIECES, 2, 2)
        names = [list(first)[(seed // 2 * count + i) % len(first)] for i in range(count)]
        others = [name for name in others if name not in names]
        names += draw.sample(others, draw.randint(0, more))
        names = list(only) or names
        draw.shuffle(names)
        self.seed, self.names = seed, names
        self.loss, self.penalty = draw.choice(OBJECTIVES)
        self.block = draw.choice(["self.second(h)", "h + self.second(F.leaky_relu(h, 0.2))"])
        self._values = {name: draw.choice(PIECES[name].values) for name in names}
        self.source = self._source()
        self.changes = ["\n".join(self._changes(draw)) for _ in range(STEPS - 1)]

    def __repr__(self):
        pair = f"{self.loss}, {self.penalty}"
        return "\n\n".join([f"seed {self.seed}: {pair}", self.source, *self.changes])

    def _filled(self, name, text):
        value = self._values[name]
        # A class is named, a number or a word written.
        text = text.replace("nn.VALUE", f"nn.{value}")
        return text.replace("VALUE", repr(value)).strip("\n")

    def _source(self):
        def texts(part):
            return [self._filled(name, getattr(PIECES[name], part)) for name in self.names]

        def indented(lines, by):
            return textwrap.indent("\n".join(lines), " " * by)

        bodies = [
            f"{BEFORE.get(name, '')}\n{body}"
            for name, body in zip(self.names, texts("body"), strict=True)
        ]
        body = [*bodies, f"h = {self.block}", "return self.head(h.flatten(1))"]
        return "\n".join(
            [
                IMPORTS,
                *texts("top"),
                "class Net(nn.Module):",
                indented(texts("own"), 4),
                "    def __init__(self):",
                "        super().__init__()",
                "        self.first = nn.Conv2d(3, 4, 3, 2)",
                "        self.second, self.head = nn.Conv2d(4, 4, 1), nn.Linear(48, 1)",
                indented(texts("init"), 8),
                "    def forward(self, x):",
                "        h = F.leaky_relu(self.first(x), 0.2)",
                indented(body, 8),
            ]
        )

    def _changes(self, draw):
        """Some of the values change, each to another one."""
        for name in self.names:
            if PIECES[name].change and draw.random() < 0.75:
                others = [v for v in PIECES[name].values if v != self._values[name]]
                self._values[name] = draw.choice(others)
                yield self._filled(name, PIECES[name].change)
