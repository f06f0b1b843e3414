"""ganfast export, refit, verify, inspect and lint: bundles."""

from typing import TYPE_CHECKING

from ganfast.commands.parsing import parser_for
from ganfast.errors import InputError, RunError

if TYPE_CHECKING:
    from ganfast.export.bundle.bundle import Bundle


def export(args: list[str]) -> None:
    parser = parser_for(
        "ganfast export",
        "Export a run's generator as a bundle; its pictures are compared with the run's own first.",
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument("--out", required=True, help="directory of the bundle")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        help="onnx (always), tensorrt, rtx, or rtx:8.6,8.9; may be given again",
    )
    parser.add_argument(
        "--precision", default="fp32", help="fp32, tf32, fp16, bf16 or int8 (default fp32)"
    )
    parser.add_argument(
        "--buckets", default="1,8,64", help="batch sizes to be fast at (default 1,8,64)"
    )
    parser.add_argument("--checkpoint", default="", help="by images shown; default the newest")
    parser.add_argument(
        "--name", default="", help="for titles; default the name of the run's directory"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.add_argument(
        "--cache",
        default=None,
        help="folder of engines built before; default engines/ in ganfast's cache",
    )
    given = parser.parse_args(args)
    if not all(word.strip().isdecimal() for word in given.buckets.split(",")):
        raise InputError(f"buckets are {given.buckets!r}; expected batch sizes such as 1,8,64")
    buckets = [int(word) for word in given.buckets.split(",")]
    from ganfast.export.exporter import export_bundle

    bundle = export_bundle(
        given.run,
        given.out,
        given.precision,
        buckets,
        given.checkpoint,
        given.name,
        given.overwrite,
        given.target,
        given.cache,
        print,
    )
    _print_written(bundle)


def refit(args: list[str]) -> None:
    parser = parser_for(
        "ganfast refit", "Write a bundle with the graph of another and the weights of a run"
    )
    parser.add_argument("bundle")
    parser.add_argument("--from", required=True, dest="run", metavar="RUN", help="run directory")
    parser.add_argument("--out", required=True, help="directory of the new bundle")
    parser.add_argument("--checkpoint", default="", help="by images shown; default the newest")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    given = parser.parse_args(args)
    from ganfast.export.refit import refit_bundle

    _print_written(
        refit_bundle(given.bundle, given.run, given.out, given.checkpoint, given.overwrite)
    )


def _print_written(bundle: "Bundle") -> None:
    for each in bundle.manifest.parity:
        print(f"{each.back_end} at batch {each.batch}: {each}")
    print(f"{bundle.folder} {bundle.manifest.digest}")


def verify(args: list[str]) -> None:
    parser = parser_for(
        "ganfast verify",
        "Check every byte of a bundle, and that it draws the pictures it was exported with",
    )
    parser.add_argument("bundle")
    parser.add_argument(
        "--digest",
        default=None,
        help="sha256:... as `ganfast export` printed it; another bundle is refused",
    )
    given = parser.parse_args(args)
    from ganfast.export.verify import verify_bundle

    bundle, found = verify_bundle(given.bundle, given.digest)
    for each in found:
        print(f"{each.back_end} at batch {each.batch}: {each}")
    print(f"{bundle.folder} is as exported, {bundle.manifest.digest}")


def inspect(args: list[str]) -> None:
    parser = parser_for(
        "ganfast inspect", "Print what a bundle says of itself, after checking every byte of it"
    )
    parser.add_argument("bundle")
    given = parser.parse_args(args)
    from ganfast.export.bundle.bundle import open_bundle

    print(open_bundle(given.bundle).manifest.to_bytes().decode(), end="")


def lint(args: list[str]) -> None:
    parser = parser_for(
        "ganfast lint",
        "Say what each target cannot take of an ONNX file or a bundle; fails where one was named",
    )
    parser.add_argument("model", help="FILE.onnx or a bundle")
    parser.add_argument("--target", default="", help="one target; default all")
    given = parser.parse_args(args)
    from ganfast.export.bundle.bundle import is_bundle, open_bundle
    from ganfast.export.graph.lint import TARGETS
    from ganfast.export.graph.lint import lint as findings
    from ganfast.export.graph.packages import need

    if given.target and given.target not in TARGETS:
        raise InputError(f"target is {given.target!r}; expected one of {', '.join(TARGETS)}")
    onnx = need("onnx")[0]
    try:
        if is_bundle(given.model):
            model = onnx.load_model_from_string(open_bundle(given.model).model_bytes())
        else:
            model = onnx.load_model(given.model, load_external_data=False)
    except InputError:
        raise
    except Exception as error:  # protobuf's own type for what is no ONNX
        raise InputError(f"{given.model} cannot be read as ONNX: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(
            f"{given.model} holds no graph, with nodes and outputs, to look at; give an ONNX model or a bundle"
        )
    for target in (given.target,) if given.target else TARGETS:
        found = findings(model, target)
        print(f"{target}: {'nothing found' if not found else ''}")
        for finding in found:
            print(f"  {finding}")
        if found and given.target:
            raise RunError(f"{given.target} cannot take {given.model}: {found[0]}")
