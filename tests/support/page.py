"""An HTML page as a test reads it, without a browser."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its numbers, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def numbers(self) -> list[tuple[str | None, str | None]]:
        """Name and value of every figure, in the page's order."""
        return [(told["data-figure"], told["value"]) for tag, told in self.elements if tag == "data"]
