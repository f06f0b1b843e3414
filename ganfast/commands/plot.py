"""ganfast plot."""

from ganfast.commands.parsing import parser_for
from ganfast.log import tell


def plot(args: list[str]) -> None:
    parser = parser_for("ganfast plot", "Curves of one or several runs in one picture")
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.flag("--out", "curves.png", "FILE.png or FILE.svg (default curves.png)")
    arguments = parser.parse_args(args)
    from ganfast.commands.curves import draw_curves

    tell(draw_curves(arguments.runs, arguments.out))
