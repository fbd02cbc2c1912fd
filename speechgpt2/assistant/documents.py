"""Files as passages: text, Markdown, HTML and PDF become short pieces of text, each with its heading or page.

document = read_document(Path("guide.md"), max_bytes=20_000_000)
document.title, document.pieces[0].location, document.pieces[0].text
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from speechgpt2.errors import UserError
from speechgpt2.extras import require

MAX_BYTES = 20_000_000  # of a file
PIECE = 600  # characters of a piece at most; a piece is what a search returns
SUFFIXES = {".txt", ".text", ".md", ".markdown", ".html", ".htm", ".pdf"}  # read from folders
HEADING = re.compile(r"#{1,6}\s+(\S.*)$")
CLOSING = re.compile(r"(?:^|\s)#+\s*$")  # the optional end of a heading: ## Title ##
MAX_LOCATION = 100  # characters of a title or heading
FENCE = re.compile(r"\s{0,3}(```|~~~)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")
BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")


# HTML elements: those whose text is not shown, those that begin and end a line, headings.
HIDDEN = re.compile("script|style|template|noscript|svg")
BLOCK = re.compile(
    "address|article|aside|blockquote|br|d[dlt]|div|fig(ure|caption)|footer|form|h[1-6]|header|hr|li|main|nav|[ou]l|p|"
    "pre|section|table|t[dhr]"
)
TITLE = re.compile("title|h[1-6]")


class Piece(NamedTuple):
    """A piece of a document: its text, and the heading or page that it stands under."""

    location: str
    text: str


class SourceDocument(NamedTuple):
    """A file that was read: its title and its pieces in order."""

    title: str
    pieces: list[Piece]


def find_files(path: Path) -> list[Path]:
    """Return the documents of a folder and its subfolders, sorted; if `path` is a file, the file itself.

    Names that begin with a dot are left out, and links to folders are not followed.

    Raises:
        UserError: `path` does not exist, or is neither a file nor a folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: {'is not a regular file' if path.exists() else 'no such file or folder'}")
    files: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a file of limited size.

    Raises:
        UserError: It is too large or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) <= max_bytes:
                data = file.read(max_bytes + 1)  # the file may be growing
                size = len(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if size > max_bytes:
        raise UserError(f"{path}: has {size:,} bytes, the limit is {max_bytes:,}; split it or raise --max-mb")
    return data


def content_hash(data: bytes) -> str:
    """Return a hash of the content, which shows whether a file has changed."""
    return hashlib.sha256(data).hexdigest()


def parse_document(path: Path, data: bytes) -> SourceDocument:
    """Split the content of a file into pieces. The suffix of its name decides the kind of file.

    A heading is the location of the pieces below it, and is not a piece itself.

    Raises:
        UserError: The file is binary, damaged, encrypted or has no text.
        MissingDependency: It is a PDF, and the extra `assistant` is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".pdf" or data.startswith(b"%PDF-"):
        title, sections = "", list(_pdf_pages(path, data))
    elif suffix in (".html", ".htm"):
        title, sections = _html_sections(decode(path, data))
    elif suffix in (".md", ".markdown"):
        title, sections = "", list(_markdown_sections(decode(path, data)))
    else:
        title, sections = "", [("", decode(path, data))]
    pieces = [Piece(location[:MAX_LOCATION], text) for location, body in sections for text in split(body)]
    if not pieces:
        raise UserError(f"{path}: has no text" + (" (scanned pages need OCR first)" if suffix == ".pdf" else ""))
    first_heading = next((location for location, _ in sections if location), "") if suffix != ".pdf" else ""
    return SourceDocument((title or first_heading or path.stem)[:MAX_LOCATION], pieces)


def decode(path: Path, data: bytes) -> str:
    """Decode text in UTF-8, UTF-16 with a byte order mark, or GB 18030.

    Raises:
        UserError: It is none of them: the file is binary.
    """
    for encoding in (BOMS.get(data[:2], "utf-8-sig"), "gb18030"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not CONTROLS.search(text):
            return text
    raise UserError(f"{path}: is a binary file; text, Markdown, HTML and PDF can be read")


def split(text: str) -> Iterator[str]:
    """Split a text into pieces of at most `PIECE` characters, at paragraphs where possible, else at sentences."""
    piece = ""
    for part in _parts(text):
        if piece and len(piece) + 1 + len(part) > PIECE:
            yield piece
            piece = ""
        piece = f"{piece}\n{part}" if piece else part
    if piece:
        yield piece


def _parts(text: str) -> Iterator[str]:
    """Paragraphs; the sentences of one that is too long; slices of a sentence that is too long."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        sentences = [paragraph] if len(paragraph) <= PIECE else SENTENCE_END.split(paragraph)
        for sentence in sentences:
            yield from (sentence[start : start + PIECE] for start in range(0, len(sentence), PIECE))


def _markdown_sections(text: str) -> Iterator[tuple[str, str]]:
    """Headings and the text below each; a `#` in a code block is not a heading."""
    heading, fenced = "", False
    lines: list[str] = []
    for line in text.splitlines():
        fenced ^= bool(FENCE.match(line))
        found = None if fenced else HEADING.match(line)
        if found:
            yield heading, "\n".join(lines)
            heading, lines = CLOSING.sub("", found[1][: 2 * MAX_LOCATION]), []
        else:
            lines.append(line)
    yield heading, "\n".join(lines)


class _HtmlText(HTMLParser):
    """Collects the visible text of a page, by its headings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.sections: list[tuple[str, list[str]]] = [("", [])]
        self._open: list[str] = []  # hidden elements, the title and headings that are open
        self._heading = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if HIDDEN.fullmatch(tag) or TITLE.fullmatch(tag):
            self._open.append(tag)
            self._heading = ""
        self._break_line(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            del self._open[self._open.index(tag) :]
            heading = " ".join(self._heading.split())
            if tag == "title":
                self.title = heading
            elif TITLE.fullmatch(tag) and heading:
                self.sections.append((heading, []))
        self._break_line(tag)

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.sections[-1][1].append(data)
        elif TITLE.fullmatch(self._open[-1]):
            self._heading += data

    def _break_line(self, tag: str) -> None:
        if BLOCK.fullmatch(tag):
            self.sections[-1][1].append("\n\n")


def _html_sections(text: str) -> tuple[str, list[tuple[str, str]]]:
    parser = _HtmlText()
    parser.feed(text)
    parser.close()
    return parser.title, [(heading, "".join(parts)) for heading, parts in parser.sections]


def _pdf_pages(path: Path, data: bytes) -> Iterable[tuple[str, str]]:
    pypdf = require("pypdf", "assistant")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns about each small fault of a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError(f"{path}: is encrypted; save a copy without a password")
        return [(f"page {number}", page.extract_text() or "") for number, page in enumerate(reader.pages, 1)]
    except UserError:
        raise
    except Exception as error:  # a damaged file makes pypdf raise exceptions of many kinds
        raise UserError(f"{path}: cannot be read as PDF ({type(error).__name__})") from None
