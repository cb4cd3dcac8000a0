"""Chat templates: ids, weights, special tokens, and conversations that are cut."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from configs.errors import DataError
from data.dialogue.conversation import Turn, TurnRules, to_text
from data.dialogue.encoding import DialogueEncoder
from data.dialogue.templates import load_template
from data.tokenization.tokenizer import Tokenizer

EOS = 0


def byte_tokenizer(*special):
    """One id for each byte, after `<|endoftext|>` and other special tokens."""
    names = ["<|endoftext|>", *special]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate([*names, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names)
    return Tokenizer(backend)


CHAT = byte_tokenizer("<|im_start|>", "<|im_end|>")
PLAIN = byte_tokenizer()
TURNS = [Turn("user", "hi", 0.0), Turn("assistant", "yo", 0.5), Turn("user", "ok", 0.0), Turn("assistant", "by", 1.0)]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def shown(template, tokenizer, turns=TURNS):
    """The text of each run of ids of one weight, special tokens marked."""
    encoded = template.encode(turns)
    edges = np.flatnonzero(np.diff(encoded["weight"])) + 1
    return [(tokenizer.decode_marked(part["id"]), float(part["weight"][0])) for part in np.split(encoded, edges)]


def test_dialogpt_joins_turns_with_the_end_of_text():
    template = load_template("dialogpt", PLAIN, EOS)
    assert shown(template, PLAIN) == [
        ("hi⟦<|endoftext|>⟧", 0.0),
        ("yo⟦<|endoftext|>⟧", 0.5),
        ("ok⟦<|endoftext|>⟧", 0.0),
        ("by⟦<|endoftext|>⟧", 1.0),
    ]
    assert PLAIN.decode_marked(template.prompt_ids(TURNS[:1])) == "hi⟦<|endoftext|>⟧"
    assert template.end_ids == (EOS,) and not template.has_system


@pytest.fixture(params=["chatml", "jinja"])
def chatml(request, tmp_path):
    """The built-in template, and the same one as people write it in Jinja."""
    if request.param == "chatml":
        return load_template("chatml", CHAT, EOS)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    return load_template("tokenizer", CHAT, EOS, str(tmp_path))


def test_chatml(chatml):
    assert shown(chatml, CHAT) == [
        ("⟦<|im_start|>⟧user\nhi⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n", 0.0),
        ("yo⟦<|im_end|>⟧", 0.5),
        ("\n⟦<|im_start|>⟧user\nok⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n", 0.0),
        ("by⟦<|im_end|>⟧", 1.0),
        ("\n", 0.0),
    ]
    opened = CHAT.decode_marked(chatml.prompt_ids([Turn("system", "be"), TURNS[0]]))
    assert (
        opened == "⟦<|im_start|>⟧system\nbe⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\nhi⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n"
    )
    assert chatml.end_ids[0] == CHAT.id_of("<|im_end|>") and chatml.has_system


def test_a_special_token_that_a_turn_spells_stays_text(chatml):
    turns = [Turn("user", "x<|im_end|>y", 0.0), Turn("assistant", "<|im_start|>", 1.0)]
    text = "".join(part for part, _ in shown(chatml, CHAT, turns))
    assert (
        text.count("⟦<|im_end|>⟧") == 2 and "x<|im_end|>y⟦<|im_end|>⟧" in text and "\n<|im_start|>⟦<|im_end|>⟧" in text
    )


@pytest.mark.parametrize(
    "name, tokenizer, message",
    [
        ("chatml", PLAIN, "chat_template: the tokenizer has no <|im_start|>; give one that has"),
        (
            "lost.jinja",
            CHAT,
            "chat_template = lost.jinja: cannot be read (.*); give dialogpt, chatml, tokenizer or the",
        ),
        ("tokenizer", CHAT, "chat_template = tokenizer: the tokenizer has no chat_template; give dialogpt"),
    ],
)
def test_a_template_that_cannot_be_used(name, tokenizer, message):
    with pytest.raises(DataError, match=f"^{message.replace('|', '[|]')}"):
        load_template(name, tokenizer, EOS)


@pytest.mark.parametrize("text", ["{{ 1", "{% for %}", "{% if 1 %}" * 3000])
def test_a_damaged_jinja_file(tmp_path, text):
    (tmp_path / "t.jinja").write_text(text)
    with pytest.raises(DataError, match="is not a Jinja template"):
        load_template(str(tmp_path / "t.jinja"), CHAT, EOS)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{{ 1 / 0 }}", "cannot write a conversation"),
        ("{{ range(10 ** 9) | list }}", "cannot write a conversation"),
        ("{{ 2.0 ** 100000 }}", "cannot write a conversation"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "cannot write a conversation"),
        ("{{ raise_exception('no') }}", "cannot write a conversation"),
        ("the same whatever is said", "does not write what the assistant says"),
    ],
)
def test_a_jinja_template_that_fails(tmp_path, text, problem):
    (tmp_path / "t.jinja").write_text(text)
    with pytest.raises(DataError, match=f"t.jinja: {problem}"):
        load_template(str(tmp_path / "t.jinja"), CHAT, EOS)


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"[]", "tokenizer_config.json: is not an object of JSON"),
        (b"null", "tokenizer_config.json: is not an object of JSON"),
        (b"{", "tokenizer_config.json: is not JSON"),
        (b"[" * 10**5, "tokenizer_config.json: is not JSON"),
        (b'{"chat_template": ["a"]}', "has no chat_template"),
    ],
)
def test_a_damaged_folder_of_a_tokenizer(tmp_path, content, problem):
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_template("tokenizer", CHAT, EOS, str(tmp_path))


def test_a_template_cannot_leave_its_sandbox(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}")
    with pytest.raises(DataError, match="t.jinja"):
        load_template(str(tmp_path / "t.jinja"), CHAT, EOS)


def encoded(turns, max_tokens):
    encoder = DialogueEncoder(PLAIN, EOS, max_tokens)
    return encoder([to_text(tuple(turns))]).ids


def test_a_long_conversation_is_cut_between_turns():
    turns = [
        Turn("user", "ab", 1.0),
        Turn("assistant", "cde", 1.0),
        Turn("user", "f", 1.0),
        Turn("assistant", "gh", 1.0),
    ]
    parts = encoded(turns, 8)
    by_segment = [PLAIN.decode(parts["id"][parts["segment"] == s]).replace("<|endoftext|>", ".") for s in (0, 1)]
    assert by_segment == ["ab.cde.", "f.gh."] or by_segment == ["ab.cde.", "cde.f."]


words = st.text("abc", min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=8), st.integers(4, 20))
def test_every_response_counts_once_or_is_counted_as_left_out(texts, max_tokens):
    turns = [Turn("user", text, 1.0) for text in texts]
    parts = encoded(turns, max_tokens)
    groups = [parts[parts["segment"] == s] for s in np.unique(parts["segment"])]
    assert all(len(group) <= max_tokens for group in groups)
    left_out = sum(not group["weight"].any() for group in groups)
    counted = [group for group in groups if group["weight"].any()]
    responses = "".join(PLAIN.decode(group["id"][group["weight"] > 0]) for group in counted).split("<|endoftext|>")[:-1]
    assert len(responses) + left_out >= len(texts) - 1
    assert len(responses) <= len(texts) - 1
    rest = iter(texts[1:])
    assert all(response in rest for response in responses), "in order, each once"


def test_batches_are_the_conversations_one_by_one():
    encoder = DialogueEncoder(PLAIN, EOS, 50, rules=TurnRules(reverse=True))
    batch = encoder([to_text((Turn("user", "a", 1.0), Turn("assistant", "b", 1.0))), to_text(())])
    (first, n_bytes), (second, _) = batch.texts()
    assert PLAIN.decode(first["id"]) == "b<|endoftext|>a<|endoftext|>" and first["weight"].tolist() == [0, 0, 1, 1]
    assert n_bytes == 2 and len(second) == 0
