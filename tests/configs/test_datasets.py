"""Dataset configs: where they are found, their defaults, and the exact message for what is wrong."""

from __future__ import annotations

import pytest

from configs.errors import ValueIssue
from configs.kinds import SEPARATOR
from configs.load import CONFIGS_DIR, load_config, resolved_json
from tests.configs.config_files import MODEL, WORDS, message_of, without, write_configs


def test_raw_text_and_dataset_defaults(tmp_path):
    raw = {"n_vocab": 128, "text": "{python_stdlib}", "text_exclude": ["*/test/*"], "eval_path": ""}
    (use,) = load_config(write_configs(tmp_path, MODEL, words=raw)).data.datasets
    assert (use.dataset.text, use.dataset.text_exclude) == (("{python_stdlib}",), ("*/test/*",))
    assert (use.dataset.path, use.dataset.eval_path, use.dataset.tokenizer_path) == (None, None, None)
    assert (use.dataset.eval_fraction, use.dataset.cache_dir) == (0.05, "datasets/words")
    assert (use.dataset.eos_id, use.dataset.padding_id, use.dataset.text_key) == (None, None, "text")


def test_a_run_without_dataset(tmp_path):
    config = load_config(write_configs(tmp_path, without(MODEL, "datasets") | {"no_dataset": True}))
    assert config.data.datasets == ()
    assert (config.data.eos_id, config.data.padding_id) == (1, 0)


def test_special_ids_of_the_model_config_override_those_of_datasets(tmp_path):
    changes = {"datasets": ["words", "pages"], "eos_id": 7, "padding_id": 128}
    config = load_config(write_configs(tmp_path, MODEL | changes))
    assert [use.dataset.eos_id for use in config.data.datasets] == [3, 5]
    assert (config.data.eos_id, config.data.padding_id) == (7, 7)


def test_dataset_configs_are_also_found_in_the_repository(tmp_path):
    config = load_config(write_configs(tmp_path, MODEL | {"datasets": ["pile"], "n_vocab": 50257}))
    assert config.data.datasets[0].dataset.path == "gs://neo-datasets/pile/pile_*.tfrecords"


WRONG_ENTRIES = {
    "datasets as a string": (
        {"datasets": "words"},
        'datasets = "words": is not a list; write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]',
    ),
    "a short dataset entry": (
        {"datasets": [["words", 25]]},
        'datasets = [["words", 25]]: holds an entry that is not [id, stitch, datatype, weight]; '
        'write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]',
    ),
    "a dataset without id": (
        {"datasets": [3]},
        "datasets = [3]: holds an entry without a dataset id; "
        'write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]',
    ),
    "an empty dataset id": (
        {"datasets": [{"id": ""}]},
        'datasets = [{"id": ""}]: the dataset id \'\' is not a plain name; give one without slashes, such as pile',
    ),
    "a dataset id that is a path": (
        {"datasets": [{"id": "a/b"}]},
        'datasets = [{"id": "a/b"}]: the dataset id \'a/b\' is not a plain name; '
        "give one without slashes, such as pile",
    ),
    "a dataset id that is a folder": (
        {"datasets": [[{"id": ".."}, None, "chunks", 1.0]]},
        'datasets = [[{"id": ".."}, null, "chunks", 1.0]]: the dataset id \'..\' is not a plain name; '
        "give one without slashes, such as pile",
    ),
    "an unknown datatype": (
        {"datasets": [["words", 2, "lines", 1.0]]},
        'datasets = [["words", 2, "lines", 1.0]]: datatype \'lines\' is not a known name; '
        "use chunks, documents_fixed, documents_random",
    ),
    "a weight of zero": (
        {"datasets": [["words", 2, "chunks", 0]]},
        'datasets = [["words", 2, "chunks", 0]]: weight 0 is out of range; give a number > 0',
    ),
    "fixed documents without stitch": (
        {"datasets": [["words", None, "documents_fixed", 1.0]]},
        'datasets = [["words", null, "documents_fixed", 1.0]]: gives documents_fixed no stitch; '
        "give the number of documents to join, such as 25",
    ),
    "documents without stitch": (
        {"datasets": [["words", None, "documents_random", 1.0]]},
        'datasets = [["words", null, "documents_random", 1.0]]: gives documents_random no stitch; '
        "give the number of documents to join, such as 25",
    ),
    "a small vocabulary": (
        {"n_vocab": 127},
        "n_vocab = 127: is less than the 128 ids of dataset words; raise it to 128 or more",
    ),
    "datasets with different special ids": (
        {"datasets": ["words", "pages"]},
        'datasets = ["words", "pages"]: differ in eos_id: words has 3, pages has 5; give eos_id in the model config',
    ),
}


@pytest.mark.parametrize("change, expected", WRONG_ENTRIES.values(), ids=WRONG_ENTRIES.keys())
def test_a_wrong_entry_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL | change)
    assert message_of(path) == f"{path}: {expected}"


WRONG_DATASETS = {
    "a misspelt key": ({"eosid": 3}, "eosid = 3: is not a known key; did you mean eos_id?"),
    "an eos id outside": (
        {"eos_id": 128},
        "eos_id = 128: is not below n_vocab = 128; give the id of the tokenizer",
    ),
    "a padding id outside": (
        {"padding_id": 129},
        "padding_id = 129: is more than n_vocab = 128; give the id of the tokenizer",
    ),
    "no data": (
        {"path": ""},
        'path = "": names no data; give path, the glob of tfrecords, or text, dialogue or pairs, the raw data',
    ),
    "two kinds of data": (
        {"text": "books/*.txt"},
        'path = "words/*.tfrecords": names tfrecords, but text names raw text; keep one of the two; datasets may '
        "list several datasets",
    ),
    "another packing": (
        {"packing": "packed"},
        'packing = "packed": is not a known name; use stream, masked',
    ),
    "conversations that see one another": (
        {"path": None, "dialogue": "chats.tsv", "packing": "stream"},
        'packing = "stream": would let the conversations of an example see one another; remove it',
    ),
    "text and conversations": (
        {"path": None, "text": "books/*.txt", "dialogue": "chats.tsv"},
        'text = "books/*.txt": names raw text, but dialogue names raw conversations; keep one of the two; datasets may '
        "list several datasets",
    ),
    "conversations of texts": (
        {"path": None, "text": "books/*.txt", "max_turns": 3},
        "max_turns = 3: has an effect on raw conversations only; remove it, or give dialogue",
    ),
    "a template for texts": (
        {"path": None, "text": "books/*.txt", "chat_template": "chatml"},
        'chat_template = "chatml": has an effect on raw conversations and tfrecords only; remove it, or give dialogue '
        "or path",
    ),
    "a separator of conversations": (
        {"path": None, "dialogue": "chats.tsv", "document_separator": "<|endoftext|>"},
        'document_separator = "<|endoftext|>": has an effect on raw text only; remove it, or give text',
    ),
    "a single turn": (
        {"path": None, "dialogue": "chats.tsv", "max_turns": 1},
        "max_turns = 1: is out of range; give an integer >= 2",
    ),
    "tfrecords without tokenizer": (
        {"tokenizer_path": None},
        "tokenizer_path = null: is missing; give the tokenizer that made the tfrecords",
    ),
    "a held-out path beside raw text": (
        {"path": None, "text": "books", "eval_path": "held/*"},
        'eval_path = "held/*": has no effect on raw text; remove it; eval_fraction holds out documents',
    ),
    "a held-out share of tfrecords": (
        {"eval_fraction": 0.1},
        "eval_fraction = 0.1: has an effect on raw text and raw conversations and pairs only; remove it, or give "
        "text or dialogue or pairs",
    ),
    "a share above one": ({"eval_fraction": 1.5}, "eval_fraction = 1.5: is out of range; give a number in [0, 1)"),
    "texts of another type": (
        {"text": 5},
        'text = 5: is not a string or a list of strings; write it as "a" or ["a", "b"]',
    ),
    "a pretrained tokenizer without name": (
        {"path": None, "text": "books", "tokenizer_path": None, "tokenizer_is_pretrained": True},
        "tokenizer_is_pretrained = true: needs tokenizer_path; give its name, such as gpt2",
    ),
}


@pytest.mark.parametrize("change, expected", WRONG_DATASETS.values(), ids=WRONG_DATASETS.keys())
def test_a_wrong_dataset_config_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL, words=WORDS | change)
    dataset_path = tmp_path / "dataset_configs" / "words.json"
    assert message_of(path) == f"{dataset_path}: {expected}"


def test_an_unknown_dataset_names_both_places_and_the_nearest_id(tmp_path):
    path = write_configs(tmp_path, MODEL | {"datasets": ["wrods"]})
    places = f"{tmp_path / 'dataset_configs'} or {CONFIGS_DIR / 'dataset_configs'}"
    assert message_of(path) == (
        f'{path}: datasets = ["wrods"]: there is no wrods.json in {places}; did you mean words?'
    )


def test_datasets_with_different_tokenizers(tmp_path):
    path = write_configs(tmp_path, MODEL | {"datasets": ["words", "pages"]}, pages=WORDS | {"tokenizer_path": "p.json"})
    assert message_of(path) == (
        f'{path}: datasets = ["words", "pages"]: have different tokenizers: p.json, words.json; '
        "give all of them the same tokenizer_path"
    )


def test_a_dataset_written_out_in_an_override(tmp_path):
    path = write_configs(tmp_path, MODEL)
    override = 'datasets=[{"id": "inline", "n_vocab": 0, "path": "a", "tokenizer_path": "b"}]'
    expected = "--set: dataset inline: n_vocab = 0: is out of range; give an integer >= 2"
    assert message_of(path, (override,)) == expected


def test_a_broken_dataset_config_is_one_issue_among_others(tmp_path):
    path = write_configs(tmp_path, MODEL | {"lr": 0})
    dataset_path = tmp_path / "dataset_configs" / "words.json"
    dataset_path.write_text("[]")
    assert message_of(path).splitlines() == [
        f"{path}: lr = 0: is out of range; give a number > 0",
        f'{dataset_path}: holds no JSON object; write {{"key": value, ...}}',
    ]


# The forms of GPT-Neo's page and notebook.

GPT2 = {"n_vocab": 50257}


def test_two_globs_are_a_dataset_of_gpt2_documents(tmp_path):
    entry = ["data/bundestag_*.tfrecords", "", 10, "random_sample", 1.0]
    config = load_config(write_configs(tmp_path, MODEL | GPT2 | {"datasets": [entry]}))
    (use,) = config.data.datasets
    dataset = use.dataset
    assert (dataset.id, dataset.path, dataset.eval_path) == ("bundestag", "data/bundestag_*.tfrecords", None)
    assert (dataset.tokenizer_path, dataset.tokenizer_is_pretrained, dataset.n_vocab) == ("gpt2", True, 50257)
    assert (use.stitch, use.datatype, use.weight) == (10, "documents_random", 1.0)
    assert (config.data.input_fn, config.data.eos_id) == ("generic_text", 50256)


def test_two_globs_go_to_training_and_evaluation_and_come_back_from_the_config_of_the_run(tmp_path):
    entries = [["*.tfrecords", "held/*", None, "chunks", 2], ["a.b/c d_*", None, 3, "documents_fixed", None]]
    path = write_configs(tmp_path, MODEL | GPT2 | {"datasets": entries, "input_fn": "sequential_input"})
    config = load_config(path)
    assert [(use.dataset.id, use.dataset.eval_path) for use in config.data.datasets] == [
        ("globs", "held/*"),
        ("c_d", None),
    ]
    assert config.data.input_fn == "sequential_input"
    (tmp_path / "config.json").write_text(resolved_json(config))
    assert load_config(str(tmp_path / "config.json")) == config


def test_two_globs_need_a_known_tokenizer(tmp_path):
    path = write_configs(tmp_path, MODEL | {"datasets": [["a", "b", None, None, None]]})
    assert message_of(path) == (
        f'{path}: datasets = [["a", "b", null, null, null]]: names tfrecords without their tokenizer, and n_vocab '
        "is less than GPT-2's 50257; name them and tokenizer_path in a file of dataset_configs/"
    )


@pytest.mark.parametrize(
    "entry, problem",
    [
        (
            ["a_*.tfrecords", "", 10, "random_sample"],
            "holds tfrecords in an entry that is not [train glob, eval glob, ",
        ),
        (["a_0.tfrecords", 10, "documents_random", 1.0], "holds tfrecords in an entry that is not [train glob, eval "),
        ("a_*.tfrecords", "holds tfrecords, 'a_*.tfrecords', in place of a dataset id; write it as [[\"a_*.tfrecords"),
    ],
)
def test_tfrecords_in_place_of_an_id_show_the_form_that_has_them(tmp_path, entry, problem):
    message = message_of(write_configs(tmp_path, MODEL | {"datasets": [entry]}))
    assert problem in message and message.endswith('"documents_random", 1.0]]')


@pytest.mark.parametrize(
    "datatype, changes, expected",
    [
        ("random_sample", {}, ("documents_random", "generic_text")),
        ("random_sample", {"input_fn": "sequential_input"}, ("documents_random", "sequential_input")),
        ("documents_random", {}, ("documents_random", "sequential_input")),
        (None, {}, ("chunks", "sequential_input")),
    ],
)
def test_a_datatype_may_have_its_older_name_or_none(tmp_path, datatype, changes, expected):
    path = write_configs(tmp_path, MODEL | {"datasets": [["words", 10, datatype, None]]} | changes)
    data = load_config(path).data
    assert (data.datasets[0].datatype, data.input_fn) == expected


def test_the_datasets_of_gpt_neos_notebook_load(tmp_path):
    """One id too few for GPT-2's tokenizer, a padding id beyond it, and held-out data alone."""
    ids = {"n_vocab": 50256, "eos_id": 50256, "padding_id": 50257}
    dataset = {"path": "", "eval_path": "wikitext/*", "tokenizer_is_pretrained": True, "tokenizer_path": "gpt2", **ids}
    model = MODEL | GPT2 | {"datasets": [["wikitext", None, None, None]]}
    config = load_config(write_configs(tmp_path, model, wikitext=dataset))
    (use,) = config.data.datasets
    assert (use.dataset.n_vocab, use.dataset.path, use.dataset.eval_path) == (50257, None, "wikitext/*")
    assert (config.data.eos_id, config.data.padding_id) == (50256, 50256)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), (False, None), (True, True), ("eos", True), ("###", "###"), ("\n\n", "\n\n")]
)
def test_documents_may_be_parted_at_a_marker(given, expected):
    assert SEPARATOR.parse(given) == expected


@pytest.mark.parametrize("given", ["", 3, ["a"]])
def test_a_marker_is_a_string(given):
    with pytest.raises(ValueIssue, match="is not a string; give the marker, or true for the tokenizer's end of text"):
        SEPARATOR.parse(given)


def test_conversations_are_masked_unless_a_dataset_says_otherwise(tmp_path):
    packings = []
    for keys in ({"dialogue": "chats.tsv"}, {"text": "books/*.txt"}, {"text": "books/*.txt", "packing": "masked"}):
        dataset = {"id": "own", "n_vocab": 128, **keys}
        config = load_config(str(write_configs(tmp_path, MODEL | {"datasets": [dataset]})))
        packings.append((config.data.datasets[0].dataset.packing, config.data.has_segments))
        (tmp_path / "resolved.json").write_text(resolved_json(config))
        assert load_config(str(tmp_path / "resolved.json")) == config
    assert packings == [("masked", True), ("stream", False), ("masked", True)]
