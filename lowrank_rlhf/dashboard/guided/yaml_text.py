"""YAML of chosen settings, with the reasons as comments."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

_INDENT = 2
_WIDE = 4096  # a chat template stays on its line


def yaml_text(values: Mapping[str, Any], comments: Mapping[tuple[str, str], str]) -> str:
    """Return the settings as YAML; a comment stands above its setting, given as section and key."""
    root = CommentedMap()
    for section, value in values.items():
        root[section] = CommentedMap(value) if isinstance(value, dict) else value
    for (section, key), text in comments.items():
        if key in values.get(section, {}):
            root[section].yaml_set_comment_before_after_key(key, before=text, indent=_INDENT)
    yaml: Any = YAML()
    yaml.width = _WIDE
    stream = io.StringIO()
    yaml.dump(root, stream)
    return stream.getvalue()
