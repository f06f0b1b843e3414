"""ganfast sample."""

from ganfast.commands.parsing import parser_for


def sample(args: list[str]) -> None:
    parser = parser_for(
        "ganfast sample",
        "Draw pictures from a run or a bundle. Picture (seed, index) is the same however many are drawn with it.",
    )
    parser.add_argument("run", help="run directory, or bundle")
    parser.add_argument(
        "-n",
        type=int,
        default=64,
        help="how many pictures; with --interpolate how many rows (default 64)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="names the stream of latents (default 0)"
    )
    parser.add_argument(
        "--first", type=int, default=0, help="index of the first picture (default 0)"
    )
    parser.add_argument(
        "--labels",
        default="",
        help="classes by number or name, used in turn: 3 or 0,1,2; default: at random",
    )
    parser.add_argument(
        "--balanced", action="store_true", help="every class equally often, in turn"
    )
    parser.add_argument(
        "--psi",
        type=float,
        default=1.0,
        help="truncation: 1 as trained, less is more typical, 0 one picture; 0 to 2",
    )
    parser.add_argument(
        "--interpolate",
        type=int,
        default=0,
        metavar="STEPS",
        help="rows of STEPS pictures from one latent to the next",
    )
    parser.add_argument(
        "--out",
        default="",
        help="FILE.png: one sheet; FILE.npz: arrays; else a folder of PNGs (default a sheet in the run)",
    )
    parser.add_argument("--grid", default="", metavar="FILE.png", help="also write one sheet")
    parser.add_argument(
        "--columns", type=int, default=0, help="of a sheet; default square, or one a class"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="by images shown, as its directory is named; default the newest",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "--backend", default="auto", help="of a bundle: auto, tensorrt, rtx, onnxruntime, torch"
    )
    parser.add_argument(
        "--digest",
        default=None,
        help="of a bundle: sha256:... as `ganfast export` printed it; another is refused",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="of a bundle: refuse where its first back end cannot be used",
    )
    given = parser.parse_args(args)
    from ganfast.sampling import Request, sample_to_files

    for path in sample_to_files(Request(**vars(given))):
        print(path)
