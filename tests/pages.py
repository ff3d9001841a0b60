"""The pages of the documentation, and the code that stands in them."""

import re
import shlex
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "recipes" / "README.md",
    ROOT / "benchmarks" / "README.md",
]
# A fence, or code within a line; the latter may be broken at a space.
_CODE = re.compile(r"^( *)(```+|~~~+)([^\n]*)\n(.*?)^\1\2 *$|`([^`]+)`", flags=re.DOTALL | re.MULTILINE)


def code(page):
    """(language, text) of all that is marked as code, in the page's order; the language of code in a line is None."""
    for found in _CODE.finditer(page.read_text(encoding="utf-8")):
        _, fence, language, block, inline = found.groups()
        yield (language.strip(), block) if fence else (None, inline)


def blocks(page, language):
    """The fenced blocks of one language."""
    return [text for name, text in code(page) if name == language]


def commands(text):
    """The words of each command in shell lines: without comments, continuation joined, ``a && b`` as two."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        for joined, words in groupby(lexer, lambda word: word == "&&"):
            if not joined:
                yield list(words)
