"""The schema for editors and the page of settings are what `schema.py` says, and every setting has its sentence."""

import json
from pathlib import Path

import pytest
import yaml

from lowrank_rlhf.config import reference
from lowrank_rlhf.config.schema import Config

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("path", "make"),
    [("docs/config.schema.json", reference.json_schema), ("docs/configuration.md", reference.markdown)],
)
def test_the_committed_file_is_up_to_date(path, make) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == make(), f"python -m lowrank_rlhf schema > {path}"


def test_every_setting_has_a_sentence_and_its_default_on_the_page() -> None:
    page = reference.markdown().splitlines()
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        for key, setting in {f"{name}.{k}": f for k, f in inner.items()}.items() if inner else [(name, field)]:
            assert setting.description, key
            (row,) = [line for line in page if line.startswith(f"| `{key}` |")]
            assert row.endswith(" |")
            assert " ".join(setting.description.split())[:20].replace("|", "") in row.replace("\\|", "")
    (row,) = [line for line in page if line.startswith("| `ppo.kl_coef` |")]
    sentence = "Weight beta of the KL penalty; with `adaptive` its starting value, which is 0.15 unless set."
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
