"""Load the template of a page; all extend ``frame.html.j2``, which holds the head, the styles and the footer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jinja2

import cytoray


@functools.cache
def load_template(package: str, name: str, **filters: Callable[[Any], str]) -> jinja2.Template:
    """Load ``templates/NAME`` of a package; values are escaped, unknown names are errors.

    ``filters`` are further ones that it uses; the variable ``version`` is cytoray's.
    """
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("cytoray.pages")])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(filters)
    environment.globals["version"] = cytoray.__version__
    return environment.get_template(name)
