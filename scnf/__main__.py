"""Start `python -m scnf` and the console script `scnf`, which watch signals before they import other modules."""

import sys
from collections.abc import Sequence

from scnf.interrupt import Interrupted, watch


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, with the arguments and exit codes of :func:`scnf.cli.main`."""
    try:
        with watch():
            from scnf import cli

            return cli.main(argv)
    except Interrupted as error:
        print(f"scnf was interrupted by {error}: run the same command again", file=sys.stderr)
        return 128 + error.number


if __name__ == "__main__":
    sys.exit(main())
