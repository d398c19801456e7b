"""Escaping of text from files, folders and servers for each medium, which then displays it and obeys none of it.

    printable()               a terminal, a log, a figure
    csv_text()                CSV, which spreadsheets open
    markdown(), code_block()  Markdown
    shell()                   a command to paste

Pages (publishing/page.py) are escaped by Jinja; their scripts only set text.
"""

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # takes long to import
    import pandas as pd

# Control characters, line ends, changes of the writing direction, and bytes that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.I)
# Markdown's special characters where they have an effect; in kernel_size and p < 0.05 they have none.
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
    """Escape characters that a terminal obeys or that cannot be encoded.

    Args:
        kept: Characters to leave as they are, e.g. a line end; by default the result is one line.
    """
    return CONTROL.sub(lambda match: match[0] if match[0] in kept else escaped(match[0]), text)


def escaped(character: str) -> str:
    """Write a character as its escape sequence, e.g. a backslash and x1b."""
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file's name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def csv_text(table: "pd.DataFrame", **options: Any) -> str:
    """Write a table as CSV in which no cell is a formula for a spreadsheet; `options` are DataFrame.to_csv's."""
    table = table.apply(lambda column: column.map(cell) if column.dtype.kind == "O" else column)
    table = table.rename(columns=cell, index=cell)
    return table.to_csv(lineterminator="\n", **options)


def cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would evaluate as a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not NUMBER.fullmatch(text) else text


def markdown(text: str) -> str:
    """Escape text for a line of Markdown."""
    return MARKDOWN.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", printable(text.strip()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table in Markdown, as lines with a blank one at the end."""
    lines = [map(markdown, header), ["---:"] * len(header), *(map(markdown, row) for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def code(text: str) -> str:
    """Write inline code in Markdown, between more backticks than the text has in a row."""
    fence = backticks(text, 1)
    return f"{fence} {printable(text)} {fence}" if "`" in text else f"`{printable(text)}`"


def code_block(language: str, text: str) -> str:
    """Write a block of code in Markdown."""
    fence = backticks(text, 3)
    return f"{fence}{language}\n{printable(text, kept=chr(10)).rstrip(chr(10))}\n{fence}"


def backticks(text: str, fewest: int) -> str:
    """Return at least `fewest` backticks, and more than the text has in a row."""
    return "`" * max(fewest, 1 + max(map(len, re.findall("`+", text)), default=0))


def shell(*words: str) -> str:
    """Quote words for a shell, which then reads exactly these words."""
    return shlex.join(words)
