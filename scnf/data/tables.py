"""Read tables of image files and labels, and add files to them without touching the lines that are there."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scnf.errors import InvalidArgument
from scnf.files import read_bytes, write_bytes

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Table:
    """A table of files and labels, as a CSV file holds it.

    Attributes:
        rows: Line number, file, label and split of each line below the header. An absent field is empty.
        header: Names of the columns, in lower case.
        delimiter: Character between two fields.
        text: Text of the file, without a byte-order mark.
    """

    rows: list[tuple[int, str, str, str]]
    header: list[str]
    delimiter: str
    text: str


def read_table(path: Path, argument: str = "root") -> Table:
    r"""Read a CSV file with the columns file, label and perhaps split.

    The file is UTF-8 with or without a byte-order mark, with commas, semicolons or tabs.

    Args:
        path: Path of the file.
        argument: Argument that errors name.

    Raises:
        InvalidArgument: The file cannot be read, or is no such table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = path.write_text("file;label\ncat/1.png;cat\n2.png;\n")
        >>> read_table(path).rows
        [(2, 'cat/1.png', 'cat', ''), (3, '2.png', '', '')]
    """
    text = _text(path, argument)
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    for delimiter in (",", ";", "\t"):
        fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        header = [name.strip().casefold() for name in fields]
        if header.count("file") == header.count("label") == 1:
            break
    else:
        raise InvalidArgument(
            argument, f"needs the header file,label or file,label,split in the first line of {path}, not {first[:80]!r}"
        )
    file, label, split = (header.index(name) if name in header else -1 for name in ("file", "label", "split"))
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if reader.line_num == 1 or not any(field.strip() for field in row):
                continue
            if len(row) > len(header):
                raise csv.Error(f"it has {len(row)} fields, and the header has {len(header)}")
            row += [""] * (len(header) + 1 - len(row))  # the last field is empty, for a split without a column
            if not row[file]:
                raise csv.Error("it names no file")
            rows.append((reader.line_num, row[file], row[label], row[split].strip().casefold()))
    except csv.Error as error:
        hint = "Put names that contain a delimiter or quotes into double quotes"
        raise InvalidArgument(argument, f"has a bad line {reader.line_num} in {path}: {error}. {hint}") from error
    return Table(rows, header, delimiter, text)


def add_files(path: Path, files: Iterable[str]) -> int:
    """Add lines with an empty label to a table, and create the table where there is none.

    The lines of an existing table stay as they are, and so do its columns and its delimiter. Files that it lists are
    not added again. The file is replaced as a whole.

    Args:
        path: Path of the CSV file.
        files: Names of the files, as they are written to the table.

    Returns:
        The number of lines that were added.

    Raises:
        InvalidArgument: There is a file that is no such table; the argument is "path".
        FileError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> add_files(path, ["1.png"]), add_files(path, ["1.png", "2.png"])
        (1, 1)
        >>> print(path.read_text(), end="")
        file,label
        1.png,
        2.png,
    """
    table = read_table(path, "path") if path.exists() else Table([], ["file", "label"], ",", "file,label\n")
    listed = {file for _, file, _, _ in table.rows}
    new = [file for file in dict.fromkeys(files) if file not in listed]
    end = "\r\n" if "\r\n" in table.text else "\n"
    text = io.StringIO(newline="")
    text.write(table.text + ("" if table.text.endswith(("\n", "\r")) else end))
    writers = [
        csv.writer(text, delimiter=table.delimiter, lineterminator=end, quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    ]
    for file in new:
        needs_quotes = file != file.strip() or "\r" in file  # which QUOTE_MINIMAL does not see
        writers[needs_quotes].writerow([file if name == "file" else "" for name in table.header])
    if new or not path.exists():
        mark = _BYTE_ORDER_MARK if path.exists() and read_bytes(path).startswith(_BYTE_ORDER_MARK.encode()) else ""
        write_bytes(path, (mark + text.getvalue()).encode())
    return len(new)


def _text(path: Path, argument: str) -> str:
    """Read a UTF-8 file without its byte-order mark."""
    content = b""
    try:
        content = read_bytes(path)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidArgument(argument, f"is not UTF-8 in line {line} of {path}: save the file as UTF-8") from error
    except OSError as error:
        raise InvalidArgument(argument, f"cannot be read: {error.strerror}: {path}") from error
