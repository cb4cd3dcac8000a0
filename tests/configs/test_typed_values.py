"""Values as people type them in a shell, which eats quotes."""

from __future__ import annotations

from typing import Any

import pytest

from configs.command_line import find_rereadings, read_overrides, unescape


def read(*texts: str) -> dict[str, Any]:
    issues: list[str] = []
    values = {key: raw.value for key, raw in read_overrides(texts, issues).items()}
    assert issues == []
    return values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=.001", 0.001),
        ("lr=1.", 1),
        ("lr=+5e-4", 0.0005),
        ("--temperature=.7", 0.7),
        ("--presence_penalty=-1e-3", -0.001),
        ("train_steps=1e5", 100_000),
        ("train_steps=1_000", 1000),
        ("train_steps=5000.0", 5000),
        ("n_head=+4", 4),
        ("n_layer=012", 12),
        ("rotary_emb=True", True),
        ("rotary_emb=FALSE", False),
        ("--never_end=True", True),
        ("predict_seed=None", None),
        ("--seed=NULL", None),
        ("lr_decay=none", None),
        ("recompute=none", "none"),
        ("recompute=None", "None"),
        ("recompute=null", None),
        ("attention_scale=none", None),
        ("name=true", "true"),
        ("name=12", "12"),
        ("stop=5", "5"),
        ("layout=batch:x", "batch:x"),
        ("mesh_shape=x:4,y:2", "x:4,y:2"),
        ("moe_layers=[1,3]", [1, 3]),
    ],
)
def test_numbers_and_words(text: str, value: object) -> None:
    (read_value,) = read(text).values()
    assert read_value == value and type(read_value) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"stop=\n", "\n"),
        (r"--stop=[\"\\n\",\"###\"]".replace('\\"', '"'), ["\n", "###"]),
        (r'stop=["\n"]', ["\n"]),
        (r'stop=["\\n"]', ["\\n"]),
        (r"stop=[\n\n,x]", ["\n\n", "x"]),
        (r"stop=\begin", r"\begin"),
        (r"activation_fn=\n", r"\n"),
    ],
)
def test_escapes_of_stop_strings(text: str, value: object) -> None:
    assert list(read(text).values()) == [value]


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"a\nb\tc\rd", "a\nb\tc\rd"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\x41\u00e9\U0001f642", "Aé🙂"),
        (r"\q \x4 \u12 C:\dir", r"\q \x4 \u12 C:\dir"),
        ("\\", "\\"),
    ],
)
def test_escapes(typed: str, text: str) -> None:
    assert unescape(typed) == text


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("stop=[a,b]", '["a", "b"]'),
        ("stop=[ a , b c ]", '["a", "b c"]'),
        ("stop=[1,2]", '["1", "2"]'),
        ("datasets=[pile]", '["pile"]'),
        ("datasets=[[pile,25,documents_random,.5]]", '[["pile", 25, "documents_random", 0.5]]'),
        ("datasets=[{id:x,n_vocab:300,text:gs://a/b}]", '[{"id": "x", "n_vocab": 300, "text": "gs://a/b"}]'),
        ("attention_types=[[[global,local],6]]", '[[["global", "local"], 6]]'),
        ("moe_params={moe_num_experts:8,moe_gating:top_1}", '{"moe_num_experts": 8, "moe_gating": "top_1"}'),
    ],
)
def test_quotes_that_the_shell_has_eaten(typed: str, written: str) -> None:
    key, _, text = typed.partition("=")
    line = f"--set {typed}: read as {written}; to keep the quotes, write --set '{key}={written}'"
    assert list(find_rereadings([typed])) == [line]
    assert read(typed) == read(f"{key}={written}")
    assert list(find_rereadings([f"{key}={written}", "lr=.1", "--temperature=.1"])) == []


@pytest.mark.parametrize("text", ["stop=[a", "stop=[a]]", "stop=[a}", "stop=[]a["])
def test_brackets_that_are_no_list_stay_text(text: str) -> None:
    assert read(text) == {"stop": text.removeprefix("stop=")}
