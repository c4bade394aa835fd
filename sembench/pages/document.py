"""A page as one file: template, style and script put together, and a policy that forbids any request."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sembench.pages import numbers

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_PART = "sembench.pages"


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page that a template of this package makes of the values, whatever text they hold shown and never run.

    Style and script stand in the page; its policy allows these two by their SHA-256 and images that stand in it, and
    nothing else, so that no request can leave it.
    """
    style, script = (_text(name) for name in ("style.css", "script.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}"
    page = _environment().get_template(template)
    return page.render(**values, style=style, script=script, policy=policy)


def png_uri(content: bytes) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def webp_uri(content: bytes) -> str:
    """A WebP file as an address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def link(path: str) -> str:
    """A relative path as an address: never taken for one with a scheme, whatever its first part is called."""
    return "./" + quote(path)


def breakable(text: str) -> "Markup":
    """The text, which may go on in a new line behind each underscore or equals sign."""
    from markupsafe import Markup, escape

    parts = re.split(r"(?<=[_=])", text)
    return Markup("<wbr>").join(escape(part) for part in parts)


def _text(name: str) -> str:
    return (files(_PART) / "templates" / name).read_text(encoding="utf-8").strip() + "\n"


def _source(text: str) -> str:
    """How a policy names a text that stands between tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(_PART), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., Any]] = {
        "fixed": numbers.fixed,
        "signed": numbers.signed,
        "counted": numbers.counted,
        "places": numbers.places,
        "significant": numbers.significant,
        "link": link,
        "breakable": breakable,
        "own_text": Markup,
    }
    environment.filters.update(filters)
    return environment
