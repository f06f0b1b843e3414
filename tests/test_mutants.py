"""Mistakes that matter, made on purpose: the ordinary tests named beside a mistake have to fail.

A mutant names a function, a method or a kernel by its symbol, and what it becomes. Its test runs in
a fork of its own, which makes the one mistake before any test is collected. A kernel is compiled
from its own text, so its mutants change the syntax tree; everything else is wrapped.
"""

import ast
import importlib
import inspect
import json
import linecache
import os
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BROKEN = 70  # exit code where a mutant could not be made, or raised an error of its own

# Where modules are imported from: the only place that knows.
HOME = """
    ganfast.losses ganfast.penalties ganfast.random ganfast.training.feed ganfast.training.state
    ganfast.runs.checkpoint ganfast.disk ganfast.runs.logfile ganfast.engine.explicit
    ganfast.engine.layers ganfast.engine.lean ganfast.engine.weights ganfast.engine.maps
    ganfast.engine.walking.trace ganfast.engine.critic ganfast.training.phases
    ganfast.kernels.gradient_penalty ganfast.kernels.latents ganfast.kernels.to_uint8
    ganfast.kernels.adam_ema ganfast.export.graph.deploy ganfast.export.bundle.bundle
    ganfast.export.bundle.parity ganfast.export.drawing.sampler ganfast.export.drawing.rows
"""
MODULES = {path.rpartition(".")[2]: path for path in HOME.split()}
MODULES["latents of NumPy"] = "ganfast.latents"


class Mutant(NamedTuple):
    """One mistake at ``place``, "<key of MODULES>.<function, Class.method or kernel>".

    ``wrong`` takes the right function and its arguments. For a kernel it takes a node of the syntax
    tree and returns the node that replaces it, or None.
    """

    place: str
    wrong: Callable[..., Any]
    caught_by: str  # "file::test", parametrised or not

    @property
    def in_kernel(self) -> bool:
        return self.place.endswith(("_kernel", ".philox_block"))  # what triton compiles


# Changes of a kernel's syntax tree.


def unmasked_stores(node: ast.AST) -> ast.AST | None:
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.store"):
        return None
    return ast.Call(node.func, node.args, [k for k in node.keywords if k.arg != "mask"])


def narrow(node: ast.AST) -> ast.AST | None:
    """What is converted to float32 is computed with in the type of the gradients after all."""
    if not ast.unparse(node).endswith(".to(tl.float32)") or not isinstance(node, ast.Call):
        return None
    return ast.parse(f"{ast.unparse(node)}.to(g_ptr.dtype.element_ty)", mode="eval").body


def swapped(right: str, wrong: str) -> Callable[[ast.AST], ast.AST | None]:
    """One constant, or one argument, in place of another."""
    other, kinds = ast.parse(wrong, mode="eval").body, ast.Constant | ast.Name
    return lambda node: other if isinstance(node, kinds) and ast.unparse(node) == right else None


# Wrong functions that are too long for the table.


def half_of_r1(right, g, weight, target, one_sided, zero_centred, scale):
    return right(g, weight, target, one_sided, zero_centred, scale / 2 if zero_centred else scale)


def counted_from_here(right, self, images):
    self.mutant_began = getattr(self, "mutant_began", images)
    right(self, images - self.mutant_began)
    self._drawn = range(images, images + len(self._drawn) * self._drawn.step, self._drawn.step)


def renamed_first(right, beside, target):
    disk = importlib.import_module(MODULES["disk"])
    disk.calls.rename(beside, target)
    disk.sync(target)
    disk.sync(target.parent)


def without_eps(right, norm):
    eps, norm.eps = norm.eps, 0.0
    try:
        return right(norm)
    finally:
        norm.eps = eps


def filled_in_front(right, rows, bucket):
    """The rows given away are then those that nobody asked for."""
    return {name: np.roll(x, bucket - len(rows), 0) for name, x in right(rows, bucket).items()}


CHECK = "test_engines.py::test_a_right_engine_passes_the_check"
SAME = (
    "test_training.py::test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_to_the_bit[dcgan]"
)
ADAM = "test_adam_ema.py::test_five_steps_are_those_of_torchs_adam_in_float64"
DEPLOYED = "test_export.py::test_deployed_pictures_are_the_generators"
FLIPPED = (
    "test_checkpoint.py::test_a_flipped_byte_anywhere_is_seen_and_the_checkpoint_before_is_used"
)
FILLED = (
    "test_sampler.py::test_a_full_batch_of_a_host_back_end_is_filled_with_nothing_of_the_request"
)

MUTANTS = {
    # Losses and penalties by their definitions.
    "the hinge loss prefers fakes": Mutant(
        "losses.hinge_critic",
        lambda right, real, fake: right(-real, -fake),
        "test_losses.py::test_every_loss_is_its_formula_for_each_pair",
    ),
    "a norm over channels only": Mutant(
        "penalties.norm",
        lambda right, gradient: gradient.norm(dim=1).flatten(1).mean(1),
        "test_penalties.py::test_property",
    ),
    "a norm without its square": Mutant(
        "penalties.squared_norm",
        lambda right, gradient: right(gradient).sqrt(),
        "test_penalties.py::test_norms_are_of_each_picture_and_match_their_squares",
    ),
    "one eps for the batch": Mutant(
        "penalties.interpolate",
        lambda right, real, fake, eps: right(real, fake, eps[:1].expand(len(real))),
        "test_penalties.py::test_property",
    ),
    # Engines; where `CHECK` fails, the start-up check has refused the wrong gradients.
    "no mask in the tangent": Mutant(
        "layers.LeakyReLU.tangent", lambda right, self, w, kept, t: t, f"{CHECK}[wgan-gp-explicit]"
    ),
    "no second-order term of a curve": Mutant(
        "explicit._Bend.added",
        lambda right, self, layer, kept, before, after, d: d,
        "test_engines.py::test_engines_agree_on_curved_critics[SiLU-wgan-gp]",
    ),
    "the loss's slope lost on rows that it shares with r1": Mutant(
        "explicit._plus", lambda right, t, h, factor: t + h, f"{CHECK}[r1-explicit]"
    ),
    "half of r1": Mutant(
        "gradient_penalty.gradient_penalty_reference", half_of_r1, f"{CHECK}[r1-explicit]"
    ),
    "gradients that do not go through spectral normalisation": Mutant(
        "weights.normalised",
        lambda right, *given: (right(*given)[0], lambda gradient: gradient),
        "test_engines.py::test_engines_agree_under_spectral_normalisation",
    ),
    "gradients that stop at the weights a forward makes": Mutant(
        "weights.MadeWeights.back",
        lambda right, self, gradients: gradients,
        "test_engines.py::test_engines_agree_on_functional_forwards[scaled weight-r1]",
    ),
    "channels that change places when they are samples": Mutant(
        "maps.Folded._unfolded",
        lambda right, self, y: right(self, y).flip(1),
        "test_engines.py::test_engines_agree_on_functional_forwards",
    ),
    "a buffer that a forward writes to is no state": Mutant(
        "trace._audit",
        lambda right, trace: (set(), set()),
        "test_engines.py::test_a_batch_norm_that_nobody_reads_is_not_walked",
    ),
    "a replay that looks at nothing": Mutant(
        "phases.Phase._look",
        lambda right, self, watch: None,
        "test_phases.py::test_a_phase_is_captured_anew_when_what_a_network_reads_has_changed",
    ),
    "no mask in autograd's second derivative": Mutant(
        "lean.LeakThrough.backward",
        lambda right, ctx, g: (g, None, None),
        f"{CHECK}[wgan-gp-autograd]",
    ),
    # Kernels, under triton's interpreter.
    "writes behind the last element": Mutant("adam_ema._adam_kernel", unmasked_stores, ADAM),
    "moments that decay alike": Mutant(
        "adam_ema._adam_kernel", swapped("one_minus_beta2", "one_minus_beta1"), ADAM
    ),
    "squares summed in bfloat16": Mutant(
        "gradient_penalty._squares_kernel",
        narrow,
        "test_gradient_penalty.py::test_value_norm_and_direction_are_those_of_float64",
    ),
    "nine rounds of Philox": Mutant(
        "latents.philox_block",
        swapped("10", "9"),
        "test_latents.py::test_uniforms_are_the_words_of_numpys_philox",
    ),
    "even levels only": Mutant(
        "to_uint8._tail_kernel",
        swapped("12582912.0", "16777216.0"),
        "test_to_uint8.py::test_every_level_is_reached_from_its_own_value",
    ),
    # Resuming.
    "a counter that starts anew": Mutant(
        "state.restore",
        lambda right, state, contents, images, at: right(state, contents, 0, at),
        SAME,
    ),
    "an order that starts anew": Mutant("feed.Feed.set", counted_from_here, SAME),
    "one order for all epochs": Mutant(
        "random.permute",
        lambda right, *given: right(*given[:-1], given[-1] * 0),
        "test_resident.py::test_every_epoch_shows_each_picture_once_in_an_order_of_its_own",
    ),
    "moments of Adam forgotten": Mutant(
        "state.restore_optimizer", lambda right, *given: None, SAME
    ),
    "the average forgotten": Mutant(
        "state.restore",
        lambda right, state, contents, *more: right(
            state, {**contents, "ema": contents["generator"]}, *more
        ),
        SAME,
    ),
    "a log that is not cut": Mutant(
        "logfile.split_log",
        lambda right, path, images, position=None: right(path, float("inf")),
        "test_training.py::test_steps_after_the_last_checkpoint_are_done_again_after_a_crash",
    ),
    "a checkpoint's hash that is not compared": Mutant(
        "checkpoint._compared",
        lambda right, path, record: path.read_bytes(),
        "test_checkpoint.py::"
        "test_a_flipped_byte_anywhere_is_seen_and_the_checkpoint_before_is_used",
    ),
    "a name before the directory is on disk": Mutant(
        "disk.publish",
        renamed_first,
        "test_checkpoint.py::test_every_file_reaches_the_disk_before_the_directory_gets_its_name",
    ),
    # Export and sampler.
    "eps forgotten where BatchNorm is folded": Mutant("deploy._scale_shift", without_eps, DEPLOYED),
    "psi ignored": Mutant(
        "deploy.Deployable.forward",
        lambda right, self, z, *more: right(self, z, *more[:-1], more[-1] * 0 + 1),
        DEPLOYED,
    ),
    "a gate that sees brighter pixels only": Mutant(
        "parity.compare",
        lambda right, pictures, truth, *more: right(pictures.clip(min=truth), truth, *more),
        "test_export.py::test_parity_is_a_distance_to_either_side",
    ),
    "golden pictures that nobody compares": Mutant(
        "sampler.check_golden",
        lambda right, bundle, backend: None,
        "test_sampler.py::test_refit_that_misses_the_golden_rows_puts_the_weights_back",
    ),
    "a bundle's hashes that are not compared": Mutant(
        "bundle.Bundle.read",
        lambda right, self, path: (self.folder / path).read_bytes(),
        "test_bundle.py::test_any_changed_byte_is_refused",
    ),
    "what fills a bucket given away": Mutant(
        "rows.Rows.feed",
        filled_in_front,
        "test_sampler.py::"
        "test_a_full_batch_of_a_host_back_end_is_filled_with_nothing_of_the_request",
    ),
    "seed and stream swapped": Mutant(
        "latents of NumPy.philox_words",
        lambda right, seed, stream, *of: right(stream, seed, *of),
        "test_random.py::test_latents_are_the_same_in_torch_and_numpy",
    ),
}

# What is no mutant has to be told from a mutant that is caught.
HINGE = MUTANTS["the hinge loss prefers fakes"]
CONTROLS = {
    "a place that is not there": HINGE._replace(place="losses.no_such_loss"),
    "another signature": HINGE._replace(wrong=lambda right, scores: scores),
    "nothing changed": HINGE._replace(wrong=lambda right, real, fake: right(real, fake)),
}
NOT_CAUGHT = dict(zip(CONTROLS, (BROKEN, BROKEN, pytest.ExitCode.OK), strict=True))


# The fork with the mistake.


class Edited(ast.NodeTransformer):
    """Replaces every node for which ``wrong`` has another, the innermost first."""

    def __init__(self, wrong: Callable[[ast.AST], ast.AST | None]) -> None:
        self.wrong, self.places = wrong, 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        other = self.wrong(node)
        self.places += other is not None
        return node if other is None else other


def edited(module: ModuleType, right: Any, wrong: Callable[[ast.AST], ast.AST | None]) -> Any:
    """A kernel from a changed syntax tree, which sees the names of its module."""
    edit = Edited(wrong)
    tree = edit.visit(ast.parse(textwrap.dedent(inspect.getsource(right.fn))))
    assert edit.places, "the mutant's place is not in the kernel any more"
    text, symbol = ast.unparse(ast.fix_missing_locations(tree)), right.fn.__name__
    path = f"{module.__file__}.{symbol}"  # triton asks for the text of this file
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    kernels: dict[str, Any] = {}
    exec(compile(text, path, "exec"), vars(module), kernels)
    return kernels[symbol]


def or_exit(wrong: Callable[..., Any]) -> Callable[..., Any]:
    """A mutant that raises because a signature has changed is no mistake that a test has caught."""

    def called(*given: Any, **named: Any) -> Any:
        try:
            return wrong(*given, **named)
        except (AttributeError, NameError, TypeError):
            os.write(2, f"the mutant itself is broken: {traceback.format_exc()}".encode())
            os._exit(BROKEN)

    return called


def make(mutant: Mutant) -> None:
    """Put the wrong thing in its place, also for those who imported the right one by its name."""
    home, _, symbol = mutant.place.partition(".")
    module = importlib.import_module(MODULES[home])
    *owners, symbol = symbol.split(".")
    owner = reduce(getattr, owners, module)
    right = vars(owner)[symbol]
    if mutant.in_kernel:
        setattr(owner, symbol, edited(module, right, mutant.wrong))
    elif isinstance(right, staticmethod):
        setattr(owner, symbol, staticmethod(or_exit(partial(mutant.wrong, right.__func__))))
    elif owners:
        setattr(owner, symbol, or_exit(partial(mutant.wrong, right)))
    else:
        right = inspect.unwrap(right)  # below torch.no_grad
        kept = FunctionType(right.__code__, right.__globals__, symbol, right.__defaults__)
        kept.__kwdefaults__ = right.__kwdefaults__
        right.__globals__["_mutant"] = or_exit(partial(mutant.wrong, kept))
        right.__code__ = (lambda *given, **named: _mutant(*given, **named)).__code__  # noqa: F821


def outcome(tests: list[str], mutant: Mutant | None = None) -> tuple[int, str]:
    """Exit code and output of pytest in a fork of this process, which makes the mistake first."""
    paths = [
        str(next((ROOT / "tests").rglob(name.partition("::")[0])).parent / name) for name in tests
    ]
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = BROKEN
            try:
                if mutant:
                    make(mutant)
                code = int(pytest.main(["-x", "-q", "-p", "no:xdist", *paths]))
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read()


def main(kernels: bool) -> None:
    """Print, as JSON, what is not as it should be: {} where all mutants are caught."""
    for module in MODULES.values():
        importlib.import_module(module)  # once, for all forks
    chosen = {name: m for name, m in MUTANTS.items() if m.in_kernel == kernels}
    code, said = outcome(sorted({mutant.caught_by for mutant in chosen.values()}))
    whole = code == 0 and "skipped" not in said
    wrong = {} if whole else {"no mutant": f"{code}: {said[-3000:]}"}
    for name, mutant in (chosen | ({} if kernels else CONTROLS)).items():
        code, said = outcome([mutant.caught_by], mutant)
        if code != NOT_CAUGHT.get(name, pytest.ExitCode.TESTS_FAILED):
            wrong[name] = f"{code}: {said[-3000:]}"
    print(json.dumps(wrong))


@pytest.mark.accept
@pytest.mark.parametrize("kind", ["functions", "kernels"])
def test_ordinary_tests_catch_every_mutant_and_pass_without_one(kind):
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_", "GANFAST_"))
    }
    environment = kept | ({"TRITON_INTERPRET": "1"} if kind == "kernels" else {})
    command = [sys.executable, "-m", __name__, kind]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = json.loads(done.stdout.splitlines()[-1])
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())


if __name__ == "__main__":
    main(sys.argv[1] == "kernels")
