"""`scnf runs`: a table of all runs, or one of them in full."""

from collections.abc import Sequence

from scnf.analysis import overview
from scnf.commands import options
from scnf.errors import UserError
from scnf.files import expand
from scnf.runs import Run


def list_runs(words: Sequence[str]) -> int:
    """Print a table of all runs, or one of them in full."""
    parser = options.Parser(prog="scnf runs", description="A table of all runs; `scnf runs show ID` for one.")
    parser.add_argument("show", nargs="*", type=expand, metavar="show RUN", help="one run in full")
    parser.add_argument("--sort", default="id", help=f"column to sort by: {', '.join(overview.COLUMNS)}")
    parser.add_argument("--reverse", action="store_true", help="largest first")
    parser.add_argument(
        "--where", action="append", default=[], help="recipe=scnf-fast, accuracy>0.9, ...; may be repeated"
    )
    options.add_logs(parser)
    chosen = parser.parse_args(list(words))
    if not chosen.logs.is_dir() and (chosen.logs.exists() or chosen.logs != parser.get_default("logs")):
        raise UserError(f"there is no directory {chosen.logs}: name the one that holds the runs with --logs")
    if chosen.show:
        if chosen.show[0] != "show" or len(chosen.show) != 2:
            raise UserError("`scnf runs` lists all; `scnf runs show RUN` shows one")
        print(overview.describe(Run.find(chosen.logs, chosen.show[1])))
    else:
        print(overview.format_table(overview.list_runs(chosen.logs), chosen.sort, chosen.reverse, chosen.where))
    return 0
