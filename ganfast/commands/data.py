"""ganfast data: info, pack, preview, fetch."""

from typing import TYPE_CHECKING

from ganfast.commands.parsing import ATTRIBUTES, DATA_ROOT, TRANSPOSE, Parser, meant, parser_for
from ganfast.errors import InputError
from ganfast.log import tell

if TYPE_CHECKING:
    from ganfast.data.manifest import Pack

HELP = """ganfast data: look at, prepare and fetch pictures.

  ganfast data info mnist                         what it is recognised as
  ganfast data pack celeba --size 64              prepare the pack now, not on first use
  ganfast data preview faces.zip --out look.png   a sheet of pictures as training will see them
  ganfast data fetch mnist                        download, with checksums

options: ganfast data info|pack|preview|fetch --help
"""


def data(args: list[str]) -> None:
    verbs = ("info", "pack", "preview", "fetch")
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    verb = args[0]
    if verb not in verbs:
        raise InputError(f"unknown command data {verb!r}{meant(verb, verbs)}")
    arguments = _parser(verb).parse_args(args[1:])
    from ganfast.data.progress import progress_bar

    if verb == "fetch":
        from ganfast.data.fetch import fetch

        with progress_bar() as progress:
            tell(fetch(arguments.data, root=arguments.data_root, progress=progress))
        return
    from ganfast.data import open_data, recognise

    if verb == "info" and not (arguments.size or arguments.channels or arguments.attributes):
        print(recognise(arguments.data, arguments.data_root).describe(arguments.split))
        return
    with progress_bar() as progress:
        pack = open_data(
            arguments.data,
            size=arguments.size,
            channels=arguments.channels,
            attributes=arguments.attributes,
            transpose=arguments.transpose,
            split=arguments.split,
            root=arguments.data_root,
            progress=progress,
            skip_corrupt=arguments.skip_corrupt,
        )
    if verb == "preview":
        _preview(pack, arguments.n, arguments.out)
    else:
        _print_facts(pack)


def _parser(verb: str) -> Parser:
    parser = parser_for(f"ganfast data {verb}", "See ganfast data --help for examples")
    parser.add_argument("data", help="name or path")
    parser.flag("--data-root", None, DATA_ROOT)
    if verb != "fetch":
        parser.flag("--size", 0, "side in pixels; 0 = the data's own")
        parser.flag("--channels", 0, "1 grey, 3 colour, 0 the data's own")
        parser.flag("--attributes", [], ATTRIBUTES, nargs="*")
        parser.flag("--transpose", False, TRANSPOSE)
        parser.flag(
            "--skip-corrupt", False, "leave out pictures that cannot be read, and count them"
        )
        parser.flag("--split", "train", "train, test, val or all")
    if verb == "preview":
        parser.flag("--out", "preview.png", "PNG to write")
        parser.flag("-n", 64, "pictures on the sheet")
    return parser


def _preview(pack: "Pack", count: int, out: str) -> None:
    from ganfast.data.pack import pack_preview
    from ganfast.images import comfortable_scale, grid, save_png

    sheet = grid(pack_preview(pack, count))
    try:
        save_png(sheet, out, comfortable_scale(pack.info.size))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    tell(out)


def _print_facts(pack: "Pack") -> None:
    info = pack.info
    print(info.recognised)
    print(f"{info.count:,} pictures {info.size}x{info.size}x{info.channels}, {info.preparation}")
    if pack.labels is not None:
        import numpy as np

        counts = np.bincount(np.asarray(pack.labels), minlength=len(info.classes))
        named = enumerate(zip(info.classes, counts, strict=True))
        print("classes: " + ", ".join(f"{i} = {name} ({n:,})" for i, (name, n) in named))
