"""Read a `Config` from YAML and overrides, report every mistake with its position, and write a config as YAML."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from lowrank_rlhf.config.checking import Check, find_problems
from lowrank_rlhf.config.messages import Key, dotted, section_fields, suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import HALF_A_CHARACTER, UserError, is_whole

_TAG = "tag:yaml.org,2002:"
_CONVERTED = (f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float")
_TEXT = (f"{_TAG}str", f"{_TAG}timestamp")  # a date is text here: no setting is one
_PLAIN = (f"{_TAG}seq", f"{_TAG}map")
_MOST_BYTES = 2**20
_DEEPEST = 5  # no setting is nested more than three deep


class Position(NamedTuple):
    """Position of a setting in the file or among the overrides; sorts in reading order, overrides last."""

    line: int
    column: int
    text: str


@dataclass
class _Settings:
    """Settings of the file and the overrides, with their positions and mistakes."""

    places: dict[Key, Position]
    values: Any = None
    problems: list[tuple[Position, str]] = field(default_factory=list)

    def place(self, key: Key) -> Position:
        """Return the position of the key, or of the closest enclosing section that is present."""
        return next(self.places[key[:size]] for size in range(len(key), -1, -1) if key[:size] in self.places)


def preset_folder() -> Path:
    """Return the folder of the presets: inside an installed package, next to the package in a checkout."""
    installed, checkout = (Path(__file__).parents[up] / "presets" for up in (1, 2))
    return installed if installed.is_dir() else checkout


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Return the file of a preset. Raises `UserError` with the names of all presets."""
    names = preset_names()
    if name not in names:
        listing = f"The presets are: {', '.join(names)}." if names else f"{preset_folder()} contains no presets."
        raise UserError(f'preset not found: "{name}". {listing}{suggestion(name, names)}')
    return preset_folder() / f"{name}.yaml"


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    check: Check = lambda _: (),
) -> Config:
    """Load the config from a YAML file or a preset, changed by `key=value` overrides.

    `check` returns the keys and messages of mistakes in a valid config; wrong settings are replaced by their defaults
    before it is called.
    Raises `UserError` with one line per mistake, each beginning with `file:line:column` or the override.
    """
    named = path.name == str(path) and not path.suffix and not os.path.isfile(path)
    if named and (path.name in preset_names() or not os.path.isdir(path)):
        path = preset_path(path.name)
    return parse_config(_read_text(path), str(path), overrides, check)


def parse_config(
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    check: Check = lambda _: (),
) -> Config:
    """Load the config from a YAML text, like `load_config`; mistakes begin with `name:line:column`."""
    settings = _read(text, name)
    for number, setting in enumerate(overrides):
        _override(settings, setting, Position(sys.maxsize, number, f'override "{setting}"'))
    for section, value in settings.values.items():
        if value is None and section_fields((section,)):
            settings.values[section] = {}  # a section whose every line is commented out
    config, found = find_problems(settings.values, check)
    problems = [*settings.problems, *_located(found, settings)]
    if config is None or problems:
        raise UserError("\n".join(f"{place.text}: {problem}" for place, problem in sorted(problems)))
    return config


class _Representer(SafeRepresenter):
    """Representer that escapes Unicode line breaks: without double quotes YAML reads them as spaces."""

    def _text(self, text: str) -> Node:
        style = '"' if set("\x85\u2028\u2029") & set(text) else None
        return self.represent_scalar(f"{_TAG}str", text, style)


_Representer.add_representer(str, _Representer._text)


def dump_config(config: Config, changed_only: bool = False) -> str:
    """Return the config as YAML, with all settings or only the changed ones; `load_config` restores it exactly."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(changed_values(config) if changed_only else config.model_dump(mode="json"), stream)
    return stream.getvalue()


def changed_values(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by section; those whose default depends on others always."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    if config.ppo.kl_controller == "adaptive":
        values["ppo"]["kl_coef"] = config.ppo.kl_coef
    if config.model.is_gguf:
        values["model"]["quantization"] = config.model.quantization
    return values


def _located(found: Iterable[tuple[Key, str]], settings: _Settings) -> Iterator[tuple[Position, str]]:
    """Yield the mistakes with their positions, except those at values that could not be read."""
    refused = {place for place, _ in settings.problems}
    for key, text in found:
        place = settings.place(key)
        if place not in refused:
            yield place, text


def _read(text: str, name: str) -> _Settings:
    settings = _Settings({(): Position(0, 0, name)})
    try:
        root = _compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = _text_place(name, mark).text if mark else name
        raise UserError(f"{where}: not valid YAML: {_reason(error)}") from None
    except (YAMLError, RecursionError) as error:
        raise UserError(f"{name}: not valid YAML: {_reason(error)}") from None
    if root is None:
        raise UserError(f"{name}: empty file. A config needs at least `name` and `model: {{source: ...}}`")
    if not isinstance(root, MappingNode):
        raise UserError(f"{name}: expected `key: value` lines at the top level")
    if root.tag not in _PLAIN:
        raise UserError(f"{_text_place(name, root.start_mark).text}: the tag {root.tag} is not allowed")
    settings.values = _value(root, (), settings, lambda mark: _text_place(name, mark), set())
    return settings


def _read_text(path: Path) -> str:
    if os.path.isdir(path):
        inside = path / "config.yaml"
        hint = f". Write {inside}" if os.path.isfile(inside) else ""
        raise UserError(f"{path}: expected a YAML file, got a folder{hint}")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(f"{path}: larger than 1 MiB. Expected a config in YAML")
        return content.decode()
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _compose(text: str) -> Node | None:
    root: Node | None = YAML(typ="safe", pure=True).compose(text)
    return root


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MarkedYAMLError):
        return ", ".join(part for part in (error.context, error.problem) if part)
    return str(error).splitlines()[0]


def _text_place(name: str, mark: StreamMark) -> Position:
    return Position(mark.line + 1, mark.column + 1, f"{name}:{mark.line + 1}:{mark.column + 1}")


def _value(
    node: Node, key: Key, settings: _Settings, place_of: Callable[[StreamMark], Position], seen: set[int]
) -> Any:
    """Return the node as plain Python; record positions, and YAML that configs do not allow, in `settings`."""
    place = settings.place(key)
    if len(key) > _DEEPEST:
        settings.problems.append((place, f"{dotted(key)}: nested too deeply"))
        return None
    if id(node) in seen:  # an alias is the anchored node itself: it is not walked twice
        settings.problems.append((place, f"{dotted(key)}: aliases (*name) are not allowed. Write the value out"))
        return None
    seen.add(id(node))
    if not isinstance(node, ScalarNode) and node.tag not in _PLAIN:
        settings.problems.append((place, f"{dotted(key)}: the tag {node.tag} is not allowed"))
        return None
    if isinstance(node, MappingNode):
        return _mapping(node, key, settings, place_of, seen)
    if isinstance(node, SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            settings.places[*key, index] = place_of(item.start_mark)
            items.append(_value(item, (*key, index), settings, place_of, seen))
        return items
    return _scalar(node, key, settings)


def _mapping(
    node: MappingNode, key: Key, settings: _Settings, place_of: Callable[[StreamMark], Position], seen: set[int]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        place = place_of(name_node.start_mark)
        if name_node.tag != f"{_TAG}str":
            inside = f" in {dotted(key)}" if key else ""
            settings.problems.append((place, f"a key{inside} must be text, not {_source(name_node)}"))
            continue
        if not is_whole(name_node.value):
            settings.problems.append((place, f"a key {HALF_A_CHARACTER}"))
            continue
        inner = (*key, name_node.value)
        if name_node.value in values:
            first = settings.places[inner].line
            where = f", first on line {first}" if first < place.line else ""
            settings.problems.append((place, f"{dotted(inner)}: duplicate key{where}"))
            continue
        settings.places[inner] = place
        values[name_node.value] = _value(value_node, inner, settings, place_of, seen)
    return values


def _source(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "a list or a mapping"


def _scalar(node: Node, key: Key, settings: _Settings) -> Any:
    if node.tag in _TEXT:
        with suppress(UnicodeDecodeError):  # JSON, a subset of YAML, writes an emoji as two surrogates
            return str(node.value).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    problem = HALF_A_CHARACTER if node.tag in _TEXT else f"the tag {node.tag} is not allowed"
    if node.tag in _CONVERTED:
        try:
            value = YAML(typ="safe", pure=True).constructor.construct_object(node)
        except (ValueError, LookupError):  # an explicit `!!int abc` or `!!int ""`, or a number of thousands of digits
            text = node.value[:40] or "nothing"
            problem = f"{text} cannot be read as {node.tag.removeprefix(_TAG)}"
        else:
            # 1e4 is a whole number to a person; every field that takes 10000.0 takes 10000.
            return int(value) if isinstance(value, float) and value.is_integer() else value
    settings.problems.append((settings.place(key), f"{dotted(key)}: {problem}"))
    return None


def _override(settings: _Settings, text: str, place: Position) -> None:
    """Replace the file's value by the override's, or record the mistake."""
    name, equals, source = text.partition("=")
    key: Key = tuple(name.strip().split("."))
    if not equals or not all(key):
        settings.problems.append((place, "must be key=value, such as ppo.kl_coef=0.1"))
        return
    section = settings.values
    for size, part in enumerate(key[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            settings.problems.append((place, f"{dotted(key)}: {dotted(key[:size])} is not a section"))
            return
    try:
        node = _compose(source)
    except (YAMLError, RecursionError) as error:
        settings.problems.append((place, f"{dotted(key)}: not valid YAML: {_reason(error)}"))
        return
    for old in [old for old in settings.places if old[: len(key)] == key]:
        del settings.places[old]
    settings.places[key] = place
    section[key[-1]] = None if node is None else _value(node, key, settings, lambda _: place, set())
