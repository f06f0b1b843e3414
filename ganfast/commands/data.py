"""ganfast data: info, pack, preview, fetch."""

from ganfast.commands.parsing import meant, parser_for
from ganfast.errors import InputError

HELP = """ganfast data: look at, prepare and fetch pictures.

  ganfast data info mnist                         what it is recognised as
  ganfast data pack celeba --size 64              prepare now what training would prepare on first use
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
    parser = parser_for(f"ganfast data {verb}", "See ganfast data --help for examples")
    parser.add_argument("data", help="name or path")
    parser.add_argument(
        "--data-root",
        default=None,
        help="where names are looked up first; default $GANFAST_DATA, then the cache",
    )
    if verb != "fetch":
        parser.add_argument(
            "--size", type=int, default=0, help="side in pixels; 0 = the data's own"
        )
        parser.add_argument(
            "--channels", type=int, default=0, help="1 grey, 3 colour, 0 the data's own"
        )
        parser.add_argument(
            "--attributes",
            nargs="*",
            default=[],
            help="celeba: attributes whose combinations are the classes",
        )
        parser.add_argument(
            "--skip-corrupt",
            action="store_true",
            help="leave out pictures that cannot be read, and count them",
        )
        parser.add_argument("--split", default="train", help="train, test, val or all")
    if verb == "preview":
        parser.add_argument("--out", default="preview.png", help="PNG to write")
        parser.add_argument("-n", type=int, default=64, help="pictures on the sheet")
    given = parser.parse_args(args[1:])
    from ganfast.data.progress import progress_bar

    if verb == "fetch":
        from ganfast.data.fetch import fetch

        with progress_bar() as progress:
            print(fetch(given.data, root=given.data_root, progress=progress))
        return
    from ganfast.data import open_data, recognise

    if verb == "info" and not (given.size or given.channels or given.attributes):
        print(recognise(given.data, given.data_root).describe(given.split))
        return
    with progress_bar() as progress:
        pack = open_data(
            given.data,
            size=given.size,
            channels=given.channels,
            attributes=given.attributes,
            split=given.split,
            root=given.data_root,
            progress=progress,
            skip_corrupt=given.skip_corrupt,
        )
    if verb == "preview":
        from ganfast.data.pack import pack_preview
        from ganfast.images import comfortable_scale, grid, save_png

        sheet = grid(pack_preview(pack, given.n))
        try:
            save_png(sheet, given.out, comfortable_scale(pack.info.size))
        except OSError as error:
            raise InputError(f"{given.out} cannot be written: {error.strerror or error}") from error
        print(given.out)
        return
    info = pack.info
    print(info.recognised)
    print(f"{info.count:,} pictures {info.size}x{info.size}x{info.channels}, {info.preparation}")
    if pack.labels is not None:
        import numpy as np

        counts = np.bincount(np.asarray(pack.labels), minlength=len(info.classes))
        print(
            "classes: "
            + ", ".join(
                f"{i} = {name} ({n:,})"
                for i, (name, n) in enumerate(zip(info.classes, counts, strict=True))
            )
        )
