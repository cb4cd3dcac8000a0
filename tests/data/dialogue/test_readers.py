"""Conversations in the forms that people have."""

import json

import pytest

from data.dialogue.conversation import TurnRules, from_text
from data.dialogue.readers import conversations_of
from data.text.documents import TextFormat, read_documents
from data.text.files import SourceFile


def read(value):
    """The turns of each conversation, or why there is none."""
    return [
        [(t.role, t.text, t.weight) for t in from_text(text)] if text is not None else problem
        for text, problem in conversations_of(value)
    ]


HI_HELLO = [("user", "hi", 1.0), ("assistant", "hello", 1.0)]


@pytest.mark.parametrize(
    "value",
    [
        ["hi", "hello"],
        {"turns": ["hi", "hello"]},
        {"dialog": [{"text": "hi"}, {"text": "hello"}]},
        {"messages": [[{"text": "hi", "sender": "x"}], [{"text": "hello", "sender": "y"}]]},
        "hi\thello",
        "1.0 hi\t1.0 hello\r\n",
        "hi  \t hello",
    ],
)
def test_two_who_talk_by_turns(value):
    assert read(value) == [HI_HELLO]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "model", "content": "hello"},
            ]
        },
    ],
)
def test_roles_decide_what_counts(value):
    assert read(value) == [[("user", "hi", None), ("assistant", "hello", None)]]


def test_weights_and_system_lines():
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "no", "weight": 0},
    ]
    assert read({"messages": messages}) == [
        [("system", "be kind", None), ("user", "hi", None), ("assistant", "no", 0.0)]
    ]
    chat = {"system": "be kind", "conversations": [{"from": "human", "value": "hi"}]}
    assert read(chat)[0][0] == ("system", "be kind", None)


def test_messages_of_one_person_are_one_turn():
    groups = [
        [{"text": "Hello", "sender": "a"}, {"text": "How are you?", "sender": "a"}],
        [{"text": "good", "sender": "b"}],
    ]
    assert read({"id1": {"messages": groups}, "id2": {"messages": []}}) == [
        [("user", "Hello How are you?", 1.0), ("assistant", "good", 1.0)],
        [],
    ]


@pytest.mark.parametrize(
    "line, turns",
    [
        ("0.0 a EOS 1.0 b\t0.5 c", [("a", 0.0), ("b", 1.0), ("c", 0.5)]),
        ("a EOS 0.0 b\t1.0 c", [("a", 1.0), ("b", 0.0), ("c", 1.0)]),
        ("1.0 a\t0.0 c", [("a", 1.0)]),  # DialoGPT leaves a response of weight 0 out
        ("3 apples\t10 pears", [("3 apples", 1.0), ("10 pears", 1.0)]),
        ("1.5 miles\tit is far", [("1.5 miles", 1.0), ("it is far", 1.0)]),
        ("nan is bread\tinf", [("nan is bread", 1.0), ("inf", 1.0)]),
    ],
)
def test_weights_of_a_tsv_line(line, turns):
    assert [(text, weight) for _, text, weight in read(line)[0]] == turns


@pytest.mark.parametrize(
    "value, problem",
    [
        ("one column", "1 columns: DialoGPT's lines have two, turns and response"),
        ("a\tb\tc", "3 columns: DialoGPT's lines have two, turns and response"),
        ("a EOS  EOS b\tc", "turn 2 is empty"),
        ("1.0 a EOS 0.0\t1.0 c", "turn 2 is empty"),
        (["hi", " "], "turn 2 is empty"),
        (["hi", "\ud800"], "half a surrogate pair"),
        (7, "7 is no conversation"),
        (["a", ["b"]], "turns are neither all strings nor all objects"),
        ({"text": "a"}, "no conversation under messages or conversations or"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool': is none of system, user"),
        ({"messages": [{"role": "assistant", "content": None}]}, "a turn has no text under content or value or text"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "text", "text": None}]}]},
            "a turn has no text under",
        ),
        ("0.0 a\t" + "9" * 400 + ".0 b", "weight inf: is not a number from 0 to 1000000"),
        ("0.0 a\t1000000.5 b", "weight 1000000.5: is not a number from 0 to 1000000"),
    ],
)
def test_what_is_no_conversation_is_said(value, problem):
    (found,) = read(value)
    assert isinstance(found, str) and found.startswith(problem)


@pytest.mark.parametrize(
    "weight, shown",
    [
        ("-1", "-1"),
        ("true", "True"),
        ("NaN", "nan"),
        ("1e39", "1e+39"),  # infinite as a float32
        ("1" + "0" * 400, "1" + "0" * 79 + "..."),  # too large for a float
        ('"1"', "'1'"),
    ],
)
def test_weights_that_are_none(weight, shown):
    (found,) = read(json.loads(f'[{{"role": "assistant", "content": "x", "weight": {weight}}}]'))
    assert found == f"weight {shown}: is not a number from 0 to 1000000"


def test_reasons_are_short_and_printable():
    reasons = [read({f"id{i}": 5 for i in range(1000)}), read([{"role": "\ud800" * 1000, "content": "x"}])]
    assert all(len(reason) < 300 and reason.isprintable() for (reason,) in reasons)


def test_every_line_and_element_of_a_file_is_one(tmp_path):
    contents = {
        "a.tsv": "hi\thello\n\nlost\n",
        "b.jsonl": '["hi", "hello"]\n{"turns": ["hi", "hello"]}\nnot json\n',
        "c.json": json.dumps([["hi", "hello"], 7]),
        "d.json": json.dumps({"x": {"messages": []}, "y": {"turns": ["hi", "hello"]}}),
    }
    found = {}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        documents = read_documents(SourceFile(str(tmp_path / name), name), TextFormat(convert=conversations_of))
        found[name] = [(d.identity, d.problem and d.problem.split(":")[0]) for d in documents]
    assert found == {
        "a.tsv": [("a.tsv:1", None), ("a.tsv:3", "1 columns")],
        "b.jsonl": [("b.jsonl:1", None), ("b.jsonl:2", None), ("b.jsonl:3", "not JSON")],
        "c.json": [("c.json:0", None), ("c.json:1", "7 is no conversation")],
        "d.json": [("d.json:1:1", None), ("d.json:1:2", None)],
    }


@pytest.mark.parametrize(
    "rules, expected",
    [
        (TurnRules(), [("user", "a", 0), ("assistant", "b", 1), ("user", "c", 0), ("assistant", "d", 1)]),
        (TurnRules(max_turns=2), [("user", "c", 0), ("assistant", "d", 1)]),
        (TurnRules(two_turn=True), [("user", "a", 0), ("assistant", "b", 1)]),
        (TurnRules(reverse=True), [("user", "d", 0), ("assistant", "c", 1), ("user", "b", 0), ("assistant", "a", 1)]),
        (TurnRules(reverse=True, two_turn=True), [("user", "d", 0), ("assistant", "c", 1)]),
    ],
)
def test_rules_of_turns(rules, expected):
    roles = ("user", "assistant")
    ((text, _),) = conversations_of([{"role": roles[i % 2], "content": "abcd"[i]} for i in range(4)])
    assert [(t.role, t.text, t.weight) for t in rules.apply(from_text(text))] == expected
