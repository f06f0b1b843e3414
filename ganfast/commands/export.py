"""ganfast export, refit, verify, inspect and lint: bundles."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ganfast.commands.parsing import parser_for
from ganfast.errors import InputError, RunError
from ganfast.log import tell

if TYPE_CHECKING:
    from ganfast.export.bundle.bundle import Bundle
    from ganfast.export.bundle.parity import Parity


def export(args: list[str]) -> None:
    parser = parser_for(
        "ganfast export",
        "Export a run's generator as a bundle; its pictures are compared with the run's own first.",
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument("--out", required=True, help="directory of the bundle")
    parser.add_argument(
        "--target",
        dest="targets",
        metavar="TARGET",
        action="append",
        default=[],
        help="onnx (always), tensorrt, rtx, or rtx:8.6,8.9; may be given again",
    )
    parser.flag("--precision", "fp32", "fp32, tf32, fp16, bf16 or int8 (default fp32)")
    parser.flag("--buckets", "1,8,64", "batch sizes to be fast at (default 1,8,64)")
    parser.flag("--checkpoint", "", "by images shown; default the newest")
    parser.flag("--name", "", "for titles; default the name of the run's directory")
    parser.flag("--overwrite", False, "replace a bundle that is there")
    parser.flag(
        "--cache", None, "folder of engines built before; default engines/ in ganfast's cache"
    )
    arguments = parser.parse_args(args)
    if not all(word.strip().isdecimal() for word in arguments.buckets.split(",")):
        raise InputError(f"buckets are {arguments.buckets!r}; expected batch sizes such as 1,8,64")
    buckets = [int(word) for word in arguments.buckets.split(",")]
    from ganfast.export.exporter import export_bundle

    options = vars(arguments) | {"buckets": buckets}
    _print_written(export_bundle(**options, tell=tell))


def refit(args: list[str]) -> None:
    parser = parser_for(
        "ganfast refit", "Write a bundle with the graph of another and the weights of a run"
    )
    parser.add_argument("bundle")
    parser.add_argument("--from", required=True, dest="run", metavar="RUN", help="run directory")
    parser.add_argument("--out", required=True, help="directory of the new bundle")
    parser.flag("--checkpoint", "", "by images shown; default the newest")
    parser.flag("--overwrite", False, "replace a bundle that is there")
    arguments = parser.parse_args(args)
    from ganfast.export.refit import refit_bundle

    _print_written(refit_bundle(**vars(arguments)))


def _print_parity(rows: "Iterable[Parity]") -> None:
    for row in rows:
        tell(f"{row.back_end} at batch {row.batch}: {row}")


def _print_written(bundle: "Bundle") -> None:
    _print_parity(bundle.manifest.parity)
    tell(f"{bundle.folder} {bundle.manifest.digest}")


def verify(args: list[str]) -> None:
    parser = parser_for(
        "ganfast verify",
        "Check every byte of a bundle, and that it draws the pictures it was exported with",
    )
    parser.add_argument("bundle")
    parser.flag(
        "--digest", None, "sha256:... as `ganfast export` printed it; another bundle is refused"
    )
    arguments = parser.parse_args(args)
    from ganfast.export.verify import verify_bundle

    bundle, parity = verify_bundle(arguments.bundle, arguments.digest)
    _print_parity(parity)
    print(f"{bundle.folder} is as exported, {bundle.manifest.digest}")


def inspect(args: list[str]) -> None:
    parser = parser_for(
        "ganfast inspect", "Print what a bundle says of itself, after checking every byte of it"
    )
    parser.add_argument("bundle")
    arguments = parser.parse_args(args)
    from ganfast.export.bundle.bundle import open_bundle

    print(open_bundle(arguments.bundle).manifest.to_bytes().decode(), end="")


def lint(args: list[str]) -> None:
    parser = parser_for(
        "ganfast lint",
        "Say what each target cannot take of an ONNX file or a bundle; fails where one was named",
    )
    parser.add_argument("model", help="FILE.onnx or a bundle")
    parser.flag("--target", "", "one target; default all")
    arguments = parser.parse_args(args)
    from ganfast.export.bundle.bundle import is_bundle, open_bundle
    from ganfast.export.graph.lint import TARGETS
    from ganfast.export.graph.lint import lint as findings
    from ganfast.export.graph.packages import need
    from ganfast.outside import plain_file

    if arguments.target and arguments.target not in TARGETS:
        raise InputError(f"target is {arguments.target!r}; expected one of {', '.join(TARGETS)}")
    onnx = need("onnx")[0]
    try:
        if is_bundle(arguments.model):
            model = onnx.load_model_from_string(open_bundle(arguments.model).model_bytes())
        else:
            model = onnx.load_model_from_string(plain_file(arguments.model, 2 << 30))
    except InputError:
        raise
    except Exception as error:  # protobuf has error types of its own for a file that is no ONNX
        raise InputError(f"{arguments.model} cannot be read as ONNX: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(
            f"{arguments.model} holds no graph, with nodes and outputs, to look at; "
            "give an ONNX model or a bundle"
        )
    for target in (arguments.target,) if arguments.target else TARGETS:
        problems = findings(model, target)
        print(f"{target}: {'nothing found' if not problems else ''}")
        for problem in problems:
            print(f"  {problem}")
        if problems and arguments.target:
            raise RunError(f"{arguments.target} cannot take {arguments.model}: {problems[0]}")
