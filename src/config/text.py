"""Text from files, folders and servers in each medium, where it is shown as it is and does nothing.

    printable()               a terminal, a log, a figure
    csv_text()                CSV, which spreadsheets open
    markdown(), code_block()  Markdown
    shell()                   a command to paste

Pages (comparison/page.py) escape by Jinja, and set text alone.
"""

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # takes long to import
    import pandas as pd

# Control characters, line ends, changes of the direction of writing, and bytes that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.I)
# Markdown's characters where they would do something; elsewhere they stay as they are, as in kernel_size and p < 0.05.
MARKDOWN = re.compile(
    r"""
    [\\`*|~$]               # code, emphasis, tables, formulas
    | (?<!\w)_ | _(?!\w)    # emphasis
    | <(?=[a-z/!?])         # HTML
    | &(?=\#?\w+;)          # an HTML entity
    | \](?=[(\[:])          # a link
    | ^(?:[#>] | [-+](?=[-\s]) | \d+[.)](?=\s))  # a heading, a quotation, a list
    """,
    re.X | re.I,
)


def printable(text: str, kept: str = "") -> str:
    """Escape what a terminal would obey and what cannot be written; without `kept`, the text is one line."""
    return CONTROL.sub(lambda match: match[0] if match[0] in kept else escaped(match[0]), text)


def escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file's name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def csv_text(table: "pd.DataFrame", **options: Any) -> str:
    """Return a table as CSV of which no spreadsheet takes a cell for a formula.

    Args:
        options: of DataFrame.to_csv.
    """
    table = table.apply(lambda column: column.map(cell) if column.dtype.kind == "O" else column)
    table = table.rename(columns=cell, index=cell)
    return table.to_csv(lineterminator="\n", **options)


def cell(value: Any) -> Any:
    """Return a cell that spreadsheets take for text: one like a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not NUMBER.fullmatch(text) else text


def markdown(text: str) -> str:
    """Escape text for a line of Markdown."""
    return MARKDOWN.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", printable(text.strip()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [map(markdown, header), ["---:"] * len(header), *(map(markdown, row) for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def code(text: str) -> str:
    """Return inline code of Markdown, between more backticks than the text has in a row."""
    fence = backticks(text, 1)
    return f"{fence} {printable(text)} {fence}" if "`" in text else f"`{printable(text)}`"


def code_block(language: str, text: str) -> str:
    """Return a block of code of Markdown."""
    fence = backticks(text, 3)
    return f"{fence}{language}\n{printable(text, kept=chr(10)).rstrip(chr(10))}\n{fence}"


def backticks(text: str, fewest: int) -> str:
    return "`" * max(fewest, 1 + max(map(len, re.findall("`+", text)), default=0))


def shell(*words: str) -> str:
    """Return a command of which a shell reads exactly these words."""
    return shlex.join(words)
