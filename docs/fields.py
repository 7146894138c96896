"""Comments beside the fields of a class as their descriptions on the pages of the API."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension


class FieldComments(Extension):
    """An attribute without a docstring is described by the comment in its last line."""

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Called by griffe for each attribute that it has read."""
        if attr.docstring is not None or not (attr.parent and attr.parent.is_class and attr.lines):
            return
        if found := re.search(r"\S\s+# (?!noqa|fmt|type)(.+)$", attr.lines[-1]):
            attr.docstring = Docstring(found[1], parent=attr)
