"""ganfast sample."""

from ganfast.commands.parsing import DEVICE, parser_for


def sample(args: list[str]) -> None:
    parser = parser_for(
        "ganfast sample",
        "Draw pictures from a run or a bundle. "
        "Picture (seed, index) is the same however many are drawn with it.",
    )
    parser.add_argument("run", help="run directory, or bundle")
    parser.flag(
        "-n", 64, "how many pictures; with --interpolate or --direction how many rows (default 64)"
    )
    parser.flag("--seed", 0, "names the stream of latents (default 0)")
    parser.flag("--first", 0, "index of the first picture (default 0)")
    parser.flag(
        "--labels", "", "classes by number or name, used in turn: 3 or 0,1,2; default: at random"
    )
    parser.flag("--balanced", False, "every class equally often, in turn")
    parser.flag(
        "--psi", 1.0, "truncation: 1 as trained, less is more typical, 0 one picture; 0 to 2"
    )
    parser.flag(
        "--interpolate", 0, "rows of STEPS pictures from one latent to the next", metavar="STEPS"
    )
    what = "rows of 9 pictures along the K-th strongest latent direction, 1 to the latent's size"
    parser.flag("--direction", 0, what, metavar="K")
    what = "how far --direction goes to either side, in standard deviations of z (default 3)"
    parser.flag("--strength", 3.0, what, metavar="A")
    parser.flag(
        "--out",
        "",
        "FILE.png: one sheet; FILE.npz: arrays; else a folder of PNGs (default a sheet in the run)",
    )
    parser.flag("--grid", "", "also write one sheet", metavar="FILE.png")
    parser.flag("--columns", 0, "of a sheet; default square, or one a class")
    parser.flag(
        "--checkpoint", "", "by images shown, as its directory is named; default the newest"
    )
    parser.flag("--device", "auto", DEVICE)
    parser.flag("--backend", "auto", "of a bundle: auto, tensorrt, rtx, onnxruntime, torch")
    parser.flag(
        "--digest",
        None,
        "of a bundle: sha256:... as `ganfast export` printed it; another is refused",
    )
    parser.flag("--strict", False, "of a bundle: refuse where its first back end cannot be used")
    arguments = parser.parse_args(args)
    from ganfast.log import tell
    from ganfast.sampling import Request, sample_to_files

    for path in sample_to_files(Request(**vars(arguments))):
        tell(path)
