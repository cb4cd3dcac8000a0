"""Reading JSON files: keys, aliases, overlaps, and files that hold no config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import load_config
from tests.configs.config_files import MODEL, message_of, without, write_configs


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = Path(write_configs(tmp_path, MODEL))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(str(path)).model.n_head == 4


def test_an_alias_may_stand_beside_its_key_with_the_same_value(tmp_path):
    path = write_configs(tmp_path, MODEL | {"activation_fn": "mish", "activation_function": "mish", "n_positions": 32})
    assert load_config(path).model.activation_function == "mish"


WRONG_KEYS = {
    "a misspelt key": ({"n_haed": 4}, "n_haed = 4: is not a known key; did you mean n_head?"),
    "a key without a similar one": (
        {"zzz": 1},
        "zzz = 1: is not a known key; remove it; docs/configuration.md lists the keys",
    ),
    "an unknown model": ({"model": "BERT"}, 'model = "BERT": is not a known model; write "GPT", or remove the key'),
    "two activations": (
        {"activation_function": "gelu", "activation_fn": "relu"},
        'activation_fn = "relu": is the same key as activation_function, which is "gelu"; keep one of the two',
    ),
}


@pytest.mark.parametrize("change, expected", WRONG_KEYS.values(), ids=WRONG_KEYS.keys())
def test_a_wrong_key_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL | change)
    assert message_of(path) == f"{path}: {expected}"


@pytest.mark.parametrize(
    "key, kind",
    [("n_head", "an integer >= 1"), ("n_vocab", "an integer >= 2"), ("model_path", "a string")],
)
def test_a_missing_key_gives_its_exact_message(tmp_path, key, kind):
    path = write_configs(tmp_path, without(MODEL, key))
    assert message_of(path) == f"{path}: {key}: is missing; give {kind}"


def test_a_key_given_twice(tmp_path):
    path = Path(write_configs(tmp_path, MODEL))
    path.write_text(json.dumps(MODEL)[:-1] + ', "n_head": 8}')
    assert message_of(str(path)) == f"{path}: n_head = 8: is given twice; keep one of the two"


def test_text_that_is_not_json_names_line_and_column(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{\n  "n_head": 4,\n  "n_embd": ,\n}')
    assert message_of(str(path)) == (f"{path}: line 3 column 13: is not JSON (Expecting value); correct the file there")


@pytest.mark.parametrize(
    "text, remedy",
    [
        ('{"mesh_shape": \u201cx:16,y:8\u201d}', 'put texts and keys into straight double quotes, "'),
        ("{'n_head': 4}", 'put texts and keys into straight double quotes, "'),
        ('{"recompute_grad": True}', "write true, false or null"),
        ('{"gradient_clipping": None}', "write true, false or null"),
        ('{"moe_layers": [1, 2, ]}', "leave out the comma before it"),
        ('{"moe_layers": [1, 2], }', "leave out the comma before it"),
        ('{"n_head": }', "correct the file there"),
    ],
)
def test_text_that_is_like_json_says_what_to_write(tmp_path, text, remedy):
    path = tmp_path / "like.json"
    path.write_text(text, encoding="utf-8")
    assert message_of(str(path)).endswith(f"; {remedy}")


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b'{"a": "\xff"}')
    assert message_of(str(path)) == f"{path}: is not UTF-8 text (byte 7); save it as UTF-8"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"n_head": ' + "9" * 10_000 + "}"], ids=["depth", "digits"])
def test_json_that_python_cannot_parse(tmp_path, content):
    path = tmp_path / "strange.json"
    path.write_text(content)
    message = message_of(str(path))
    assert message.startswith(f"{path}") and message.count("\n") == 0


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.json"
    assert message_of(str(path)) == f"{path}: cannot be read (No such file or directory); check the path"


def test_comments_are_passed_over_but_not_in_strings(tmp_path):
    path = Path(write_configs(tmp_path, without(MODEL, "n_head", "model_path")))
    commented = """# a comment, "n_head": 3
    { "n_head": 4,  # heads
      "model_path": "gs://a#b/*c*/\\"#d", // where
      /* two
      lines */
    """
    path.write_text(commented + path.read_text()[1:])
    config = load_config(str(path))
    assert (config.model.n_head, config.model_path) == (4, 'gs://a#b/*c*/"#d')


def test_a_place_after_comments_is_that_of_the_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{ # one\n  /* two\n */ "n_head": 4, // é\n  "n_embd": ,\n}')
    assert message_of(str(path)) == f"{path}: line 4 column 13: is not JSON (Expecting value); correct the file there"


@pytest.mark.parametrize("alias, key, value", [("n_heads", "n_head", 4), ("axial_pos_emb_", "axial_pos_emb", [4, 8])])
def test_names_of_gpt_neos_page_are_read(tmp_path, alias, key, value):
    config = load_config(write_configs(tmp_path, without(MODEL, key) | {alias: value}))
    assert getattr(config.model, key) == (tuple(value) if isinstance(value, list) else value)
