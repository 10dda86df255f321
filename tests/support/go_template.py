"""An independent reading of the few constructs of Go's template language in a Modelfile, as Jinja."""

import re
from collections.abc import Sequence

from jinja2.sandbox import ImmutableSandboxedEnvironment


def go_template(modelfile: str) -> str:
    """Return the TEMPLATE of a Modelfile. Raises ValueError if it has none."""
    (found,) = re.findall(r'^TEMPLATE """(.*)"""$', modelfile, re.M | re.S)
    return str(found)


def rendered_by_go(go: str, messages: Sequence[dict[str, str]]) -> str:
    """Render the conversation up to where the next answer begins."""
    for pattern, jinja in (
        (r"{{ range \.Messages }}(.*){{ end }}{{ end }}", r"{% for m in messages %}\1{% endif %}{% endfor %}"),
        (r'{{ if ne \(index \.Messages 0\)\.Role "system" }}(.*?){{ end }}',
         r"{% if messages[0].role != 'system' %}\1{% endif %}"),
        (r'{{ (else if|if) eq \.Role "(\w+)" }}',
         lambda found: f"{{% {'elif' if found[1] != 'if' else 'if'} m.role == '{found[2]}' %}}"),
        (r"{{ \.Content }}", "{{ m.content }}"),
    ):  # fmt: skip
        go = re.sub(pattern, jinja, go, flags=re.S)
    return ImmutableSandboxedEnvironment(keep_trailing_newline=True).from_string(go).render(messages=messages)
