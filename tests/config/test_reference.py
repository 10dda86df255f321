"""JSON schema and settings page match `schema.py`, and every setting has a description."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank_rlhf.config import reference
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "make"),
    [("docs/config.schema.json", reference.json_schema), ("docs/configuration.md", reference.markdown)],
)
def test_the_committed_file_is_up_to_date(path, make) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == make(), f"python -m lowrank_rlhf schema > {path}"


SOURCES = [
    ROOT / "lowrank_rlhf" / "config" / name
    for name in (
        "schema.py",
        "data.py",
        "model.py",
        "ppo.py",
        "reward.py",
        "rewards.py",
        "align.py",
        "endpoint.py",
        "evaluate.py",
        "chat.py",
    )
]


def sentences() -> dict[str, str]:
    """The docstring under each field, read from the source itself, by dotted key; of `rank.endpoint`'s too."""
    classes = {
        node.name: node
        for path in SOURCES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    found: dict[str, str] = {}

    def walk(name: str, prefix: str) -> None:
        for field, below in zip(classes[name].body, [*classes[name].body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign):
                continue
            key = f"{prefix}{ast.unparse(field.target)}"
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[key] = " ".join(below.value.value.split())
            annotation = ast.unparse(field.annotation)
            for inner in classes.keys() & set(re.findall(r"\w+", annotation)):
                walk(inner, f"{key}.{'NAME.' if annotation.startswith('dict[') else ''}")

    walk("Config", "")
    return found


def by_schema() -> dict[str, tuple[str, dict[str, Any]]]:
    """Description and entry of each setting in the committed JSON schema."""
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    found: dict[str, tuple[str, dict[str, Any]]] = {}

    def walk(entry: dict[str, Any], prefix: str) -> None:
        for name, about in entry["properties"].items():
            if "description" in about:
                found[f"{prefix}{name}"] = (" ".join(about["description"].split()), about)
            for part in (about, *about.get("anyOf", ())):
                if "$ref" in part:
                    walk(schema["$defs"][part["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            named = about.get("additionalProperties")
            if isinstance(named, dict) and "$ref" in named:
                walk(schema["$defs"][named["$ref"].rpartition("/")[2]], f"{prefix}{name}.NAME.")

    walk(schema, "")
    return found


def test_one_sentence_in_schema_page_and_help() -> None:
    expected = sentences()
    assert {"name", "seed", "ppo.kl_coef", "rank.endpoint", "rank.endpoint.api_key_variable"} <= expected.keys()
    assert len(expected) > 90
    assert {key: text for key, (text, _) in by_schema().items()} == expected
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]
    assert {key.strip("`"): text.replace("\\|", "|") for key, _, text in rows} == expected
    defaults = {key.strip("`"): default.strip("`") for key, default, _ in rows}
    for key, sentence in expected.items():
        name, kind, default, *text = reference.explanation(key).split("\n\n")[0].splitlines()
        assert (name, default) == (key, f"  default: {defaults[key]}")
        assert kind.startswith("  type:    ")
        printed = " ".join(" ".join(text).split())
        assert printed == sentence or (key in ("rank.endpoint", "ppo.rewards") and printed.startswith(f"{sentence} "))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("ppo.kl_coef", "a number, at least 0"),
        ("sft.learning_rate", "a number, above 0, below 1"),
        ("seed", "a whole number, at least 0"),
        ("model.quantization", "nf4 | int8 | gguf | none"),
        ("lora.target_modules", "all-linear or a list of text"),
        ("stages", "a list of sft | sample | rank | reward | ppo | evaluate"),
        ("rank.endpoint", "a section or null"),
        ("ppo.rewards", "a mapping"),
        ("ppo.rewards.NAME.unit", "tokens | words | characters"),
        ("data.skip_too_long", "true or false"),
    ],
)
def test_types_in_words(key, kind) -> None:
    assert reference.explanation(key).splitlines()[1] == f"  type:    {kind}"


def test_a_section_explains_all_in_it() -> None:
    text = reference.explanation("ppo")
    assert text.startswith("ppo\n  Stage 3: PPO against the reward model")
    for name in Config.model_fields["ppo"].annotation.model_fields.keys() - {"rewards"}:
        assert f"\n\n{reference.explanation(f'ppo.{name}')}" in text
    assert "\n\nppo.rewards.NAME.weight\n" in text
    assert "\n\nrank.endpoint\n" in reference.explanation("rank")
    assert "\n\nrank.endpoint.url\n" in reference.explanation("rank")
    assert "\n\nrank.endpoint.url\n" in reference.explanation("rank.endpoint")
    with pytest.raises(UserError, match=r'unknown setting "ppo\.kl_coeff"\. Did you mean "ppo\.kl_coef"\?'):
        reference.explanation("ppo.kl_coeff")


def test_rows_of_the_page() -> None:
    page = reference.markdown().splitlines()
    (row,) = [line for line in page if line.startswith("| `ppo.kl_coef` |")]
    sentence = "Weight beta of the KL penalty; with `kl_controller: adaptive` its initial value, by default 0.15."
    assert row == f"| `ppo.kl_coef` | `0.05` | {sentence} |"
    (row,) = [line for line in page if line.startswith("| `model.source` |")]
    assert row.startswith("| `model.source` | required |")


def test_the_schema_refuses_what_the_config_refuses() -> None:
    schema = json.loads(reference.json_schema())
    assert schema["required"] == ["name", "model"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["PpoConfig"]["properties"]["kl_coef"]["minimum"] == 0
    assert "penalty" in schema["$defs"]["PpoConfig"]["properties"]["kl_coef"]["description"]


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_names_the_schema(preset) -> None:
    named = [line for line in preset.read_text().splitlines() if line.startswith("# yaml-language-server: $schema=")]
    (line,) = named
    assert (preset.parent / line.partition("=")[2]).resolve() == ROOT / "docs/config.schema.json"
    assert yaml.safe_load(preset.read_text())["name"]
