"""Run `scnf runs`, which prints a table of all runs or one run in full."""

from collections.abc import Sequence

from scnf.analysis import overview
from scnf.commands import options
from scnf.errors import UserError
from scnf.files import expand
from scnf.runs import Run


def list_runs(words: Sequence[str]) -> int:
    """Print a table of all runs, or one run in full."""
    parser = options.Parser(
        prog="scnf runs", description="List all runs in a table. `scnf runs show RUN` prints one run in full."
    )
    parser.add_argument("show", nargs="*", type=expand, metavar="show RUN", help="print one run in full")
    parser.add_argument("--sort", default="id", help=f"column to sort by: {', '.join(overview.COLUMNS)}")
    parser.add_argument("--reverse", action="store_true", help="sort in descending order")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        help="condition on the runs, such as recipe=scnf-fast or accuracy>0.9; may be repeated",
    )
    options.add_logs(parser)
    arguments = parser.parse_args(list(words))
    logs = arguments.logs
    if not logs.is_dir() and (logs.exists() or logs != parser.get_default("logs")):
        raise UserError(f"there is no directory {logs}: name the directory of all runs with --logs")
    if arguments.show:
        if arguments.show[0] != "show" or len(arguments.show) != 2:
            raise UserError("wrong arguments: `scnf runs` lists all runs, and `scnf runs show RUN` prints one run")
        print(overview.describe(Run.find(logs, arguments.show[1])))
    else:
        print(overview.format_table(overview.list_runs(logs), arguments.sort, arguments.reverse, arguments.where))
    return 0
