"""Every key is documented, and the reference page is fresh."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from configs import schema
from configs.schema import DatasetConfig, ModelConfig, RunConfig, keys_of

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = (RunConfig, *schema.GROUPS.values(), DatasetConfig)
KEYS = [(config_class, name) for config_class in CLASSES for name in keys_of(config_class)]


@pytest.mark.parametrize("config_class, name", KEYS, ids=[name for _, name in KEYS])
def test_every_key_has_a_sentence_that_explains_it(config_class, name):
    doc = keys_of(config_class)[name].metadata["doc"]
    assert doc.endswith(".") and len(doc.split()) >= 2


@pytest.mark.parametrize("config_class, name", KEYS, ids=[name for _, name in KEYS])
def test_every_count_has_a_unit(config_class, name):
    field = keys_of(config_class)[name]
    is_count = field.metadata["kind"].description.startswith("an integer")
    if is_count and not name.endswith(("_id", "seed")):
        assert field.metadata["unit"]


def test_every_field_of_a_group_is_a_key():
    for config_class in schema.GROUPS.values():
        assert set(keys_of(config_class)) == {field.name for field in dataclasses.fields(config_class)}


def test_no_key_stands_in_two_groups():
    names = [name for config_class in (RunConfig, *schema.GROUPS.values()) for name in keys_of(config_class)]
    assert len(names) == len(set(names))
    assert not set(names) & set(schema.ALIASES)
    assert set(schema.ALIASES.values()) <= set(names)


def test_defaults_are_values_of_their_kind():
    for config_class, name in KEYS:
        field, kind = keys_of(config_class)[name], keys_of(config_class)[name].metadata["kind"]
        if field.default is not dataclasses.MISSING and not field.metadata["default_text"]:
            assert kind.parse(kind.write(field.default)) == field.default


def test_settings_cannot_be_changed():
    model = ModelConfig(n_head=4, n_embd=64, n_layer=3, n_ctx=8, n_vocab=32)
    assert (model.features_per_head, model.attention_types) == (16, ("global",) * 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.n_head = 8


def test_attention_types_are_written_as_the_shortest_pattern():
    write = keys_of(ModelConfig)["attention_types"].metadata["kind"].write
    assert write(("global", "local") * 6) == [[["global", "local"], 6]]
    assert write(("none",)) == [[["none"], 1]]
    assert write(("global", "none", "none", "global")) == [[["global", "none", "none", "global"], 1]]


def test_the_reference_page_is_fresh():
    path = REPOSITORY / "docs" / "generate_configuration.py"
    spec = importlib.util.spec_from_file_location("generate_configuration", path)
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.render(), "run python docs/generate_configuration.py"
    for _, name in KEYS:
        assert f"| `{name}` |" in generator.render()


def test_configs_need_the_standard_library_only(tmp_path):
    code = (
        "import sys; before = set(sys.modules); import configs.load; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'configs'}))"
    )
    child = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (child.stdout, child.stderr) == ("[]\n", "")
