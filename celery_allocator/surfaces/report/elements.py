"""Elements of the page. The tree is the standard library's: it escapes all text, wherever that comes from."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

Child = Element | str | int | None


def element(tag: str, *children: Child, **attributes: str | float) -> Element:
    """An element. In names of attributes ``_`` stands for ``-``, and one at the end is dropped (``class_``)."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): _text(value) for name, value in attributes.items()})
    for child in children:
        append(made, child)
    return made


def append(parent: Element, child: Child) -> None:
    """Add an element or a text at the end; ``None`` adds nothing."""
    if child is None:
        return
    if isinstance(child, Element):
        parent.append(child)
    elif len(parent):
        last = parent[-1]
        last.tail = (last.tail or "") + _printable(str(child))
    else:
        parent.text = (parent.text or "") + _printable(str(child))


def html(root: Element) -> str:
    """The document as text."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _text(value: str | float) -> str:
    """A number with at most two decimals: coordinates take no more."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return _printable(str(value))


def _printable(text: str) -> str:
    """Without control characters, which no HTML may hold."""
    return "".join(sign if sign >= " " or sign in "\n\t" else "\ufffd" for sign in text)
