"""Tests of data/tokenization/tokenizer.py."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

import data.tokenization.tokenizer
from configs.errors import ConfigError, DataError
from configs.schema import DatasetConfig
from data.tokenization.bpe_training import save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import Tokenizer, check_special_ids, from_json, load_tokenizer
from runtime.generation.detokenizer import Detokenizer, ScoredToken

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE = [
    "def encode(self, text):\n    return self.ids[text]\n",
    "schöne neue Welt <|endoftext|> 'tis",
    "the end of the text",
]
TOKENIZER = train_byte_level_bpe(SAMPLE * 5, 310)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_byte_lengths_of_the_ids_add_up_to_the_bytes_of_the_text(text):
    assert TOKENIZER.token_byte_lengths()[TOKENIZER.encode(text)].sum() == len(text.encode("utf-8"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 330), max_size=12))
def test_bytes_of_any_ids_are_those_of_what_they_decode_to(ids):
    told = b"".join(map(TOKENIZER.bytes_of, ids))
    assert told.decode("utf-8", "replace") == TOKENIZER.decode(ids)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_a_batch_is_encoded_as_its_texts_are(texts):
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab \n\r\t'\x85\x1c.1", max_size=80))
def test_cutting_a_long_text_changes_no_token(text):
    whole = TOKENIZER.encode(text)
    piece_characters = data.tokenization.tokenizer.PIECE_CHARACTERS
    data.tokenization.tokenizer.PIECE_CHARACTERS = 3
    try:
        assert "".join(TOKENIZER.pieces(text)) == text
        assert TOKENIZER.encode_batch([text]) == [whole]
    finally:
        data.tokenization.tokenizer.PIECE_CHARACTERS = piece_characters


def test_a_long_text_is_cut_at_line_breaks_between_words(monkeypatch):
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 3)
    assert TOKENIZER.pieces("abc\ndef\n\nghi\n jkl\nm") == ["abc\n", "def\n\nghi\n jkl\n", "m"]


def test_special_tokens_have_ids_but_come_out_of_no_text():
    assert (TOKENIZER.eos_id, TOKENIZER.padding_id) == (0, 1)
    ids = TOKENIZER.encode("a<|endoftext|>b<|padding|>")
    assert not {0, 1} & set(ids)
    assert TOKENIZER.decode([0, *TOKENIZER.encode("a"), 1]) == "<|endoftext|>a<|padding|>"
    assert list(TOKENIZER.token_byte_lengths()[:2]) == [0, 0]
    assert TOKENIZER.token_byte_lengths().shape == (TOKENIZER.n_vocab,) == (310,)


@pytest.mark.parametrize("copy", [lambda t: pickle.loads(pickle.dumps(t)), lambda t: from_json(t.to_json())])
def test_a_copy_encodes_alike(copy):
    text = SAMPLE[1]
    assert copy(TOKENIZER).encode(text) == TOKENIZER.encode(text)


def test_a_json_file_is_loaded(tmp_path):
    path = str(tmp_path / "a" / "t.json")
    save_tokenizer(TOKENIZER, path)
    loaded = load_tokenizer(path)
    assert loaded.encode(SAMPLE[0]) == TOKENIZER.encode(SAMPLE[0])
    assert load_tokenizer(path, is_pretrained=True).n_vocab == 310
    assert os.listdir(tmp_path / "a") == ["t.json"]


def write_folder(folder: Path) -> None:
    """Writes a byte-level BPE by hand: h e l o ! and the bytes of ' ' and 'é', two merges, end of text."""
    letters = ["h", "e", "l", "o", "!", "Ġ", "Ã", "©"]
    vocabulary = [*letters, "he", "ll", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")


def test_a_folder_with_vocab_and_merges_is_loaded(tmp_path):
    write_folder(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("hello hé!") == [8, 9, 3, 5, 0, 6, 7, 4]
    assert tokenizer.decode([8, 9, 3, 5, 0, 6, 7, 4]) == "hello hé!"
    assert (tokenizer.n_vocab, tokenizer.eos_id, tokenizer.padding_id) == (11, 10, None)
    assert list(tokenizer.token_byte_lengths()) == [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 0]
    assert 10 not in tokenizer.encode("he<|endoftext|>")


def test_bytes_are_counted_by_decoding_where_tokens_are_no_bytes():
    backend = tokenizers.Tokenizer(models.WordLevel({"straße": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[UNK]"])
    backend.add_tokens(["zwölf"])
    assert list(Tokenizer(backend).token_byte_lengths()) == [7, 1, 0, 6]


def error_of(path: str) -> str:
    with pytest.raises(DataError) as error:
        load_tokenizer(path)
    return str(error.value)


def test_bytes_in_a_text_where_tokens_are_words_or_bytes():
    vocabulary = {"a": 0, "\u2581so": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "\u2581": 5}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    assert list(map(Tokenizer(backend).bytes_of, range(7))) == [b"a", b" so", b"\xe2", b"\x82", b"\xac", b" ", b""]


def test_vocabularies_are_read_without_a_byte_order_mark(tmp_path):
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.mkdir(), marked.mkdir()
    write_folder(plain)
    (plain / "merges.txt").write_text("h e\r\nl l\r\n")  # without the comment, the mark stands before a merge
    (tmp_path / "t.json").write_bytes(b"\xef\xbb\xbf" + TOKENIZER.to_json().encode())
    for name in ("vocab.json", "merges.txt"):
        (marked / name).write_bytes(b"\xef\xbb\xbf" + (plain / name).read_bytes())
    assert load_tokenizer(str(marked)).to_json() == load_tokenizer(str(plain)).to_json()
    assert load_tokenizer(str(marked)).encode("hello") == [8, 9, 3]
    assert load_tokenizer(str(tmp_path / "t.json")).to_json() == TOKENIZER.to_json()


def test_ids_that_are_no_token():
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 1, "b": 2, "c": 5}, "a")))
    assert [tokenizer.unused_ids(n_vocab) for n_vocab in (9, 6, 3, 2)] == [
        ((0, 1), (3, 5), (6, 9)),
        ((0, 1), (3, 5)),
        ((0, 1),),
        ((0, 1),),
    ]
    assert TOKENIZER.unused_ids(TOKENIZER.n_vocab) == ()
    assert [tokenizer.first_unknown(ids) for ids in ((), (1, 2, 5), (5, 4, 3), (1, 10**6))] == [None, None, 4, 10**6]


def test_a_file_that_is_not_a_tokenizer_is_named(tmp_path):
    missing = f"{tmp_path}/none.json"
    assert error_of(missing) == (
        f"{missing}: no such tokenizer; give a tokenizers JSON file (data/train_tokenizer.py makes one), or a folder "
        "with vocab.json and merges.txt"
    )
    (tmp_path / "bad.json").write_text("{}")
    assert error_of(f"{tmp_path}/bad.json").startswith(f"{tmp_path}/bad.json: not a tokenizers JSON file (")
    assert error_of(str(tmp_path)) == (
        f"{tmp_path}: has no vocab.json; a tokenizer folder holds tokenizer.json, or vocab.json and merges.txt"
    )
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("")
    assert error_of(str(tmp_path)).startswith(f"{tmp_path}: vocab.json and merges.txt are not a BPE (")


def test_a_name_that_cannot_be_downloaded_says_what_to_give_instead(tmp_path):
    script = (
        "from configs.errors import DataError\n"
        "from data.tokenization.tokenizer import load_tokenizer\n"
        "try:\n    load_tokenizer('no/such-tokenizer', is_pretrained=True)\n"
        "except DataError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        "no/such-tokenizer: neither a file or folder here, nor found as a tokenizer at Hugging Face ("
    )
    assert done.stdout.endswith("); give a tokenizers JSON file, or a folder with vocab.json and merges.txt\n")


def dataset(**values: object) -> DatasetConfig:
    return DatasetConfig(**({"id": "d", "n_vocab": 310, "eos_id": 0, "padding_id": 1, "cache_dir": "c"} | values))


def issues_of(tokenizer: Tokenizer, **values: object) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check_special_ids(tokenizer, dataset(**values))
    return str(error.value).splitlines()


def test_ids_that_agree_pass():
    check_special_ids(TOKENIZER, dataset())
    check_special_ids(TOKENIZER, dataset(n_vocab=512))


def test_a_padding_id_equal_to_n_vocab_means_no_padding_token(tmp_path):
    write_folder(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    check_special_ids(tokenizer, dataset(n_vocab=11, eos_id=10, padding_id=11))
    assert issues_of(tokenizer, n_vocab=11, eos_id=10, padding_id=12) == [
        "d: padding_id = 12: the tokenizer has ids 0 to 10 only; choose one of them, or n_vocab, 11, for no "
        "padding token"
    ]


def test_every_disagreement_is_reported_at_once():
    assert issues_of(TOKENIZER, n_vocab=100, eos_id=1, padding_id=0) == [
        "d: n_vocab = 100: the tokenizer has 310 ids; set n_vocab to at least that",
        "d: eos_id = 1: the tokenizer's <|endoftext|> is 0; set eos_id to 0",
        "d: padding_id = 0: the tokenizer's <|padding|> is 1; set padding_id to 1",
    ]
    assert issues_of(TOKENIZER, n_vocab=400, eos_id=310)[0] == (
        "d: eos_id = 310: the tokenizer has ids 0 to 309 only; choose one of them"
    )


def test_a_long_text_without_line_breaks_is_cut_before_spaces_between_words(monkeypatch):
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 3)
    assert TOKENIZER.pieces("abc def  ghi jk\tlm nop") == ["abc", " def  ghi", " jk\tlm", " nop"]
    assert TOKENIZER.pieces("abcdefghi") == ["abcdefghi"]


PARTS = [
    "the",
    "end",
    " ",
    "\n",
    "\t",
    "'s",
    "\xa0",
    "\x85",
    "\x1c",
    "\xb4",
    "\u037a",
    "\u0301",
    "\u3000",
    ".",
    "1",
    "é",
    "/",
    "<\u0338",
    "漢",
    "ひ",
    "\u3099",
    "、",
    "：",
]


def normalizing(*steps: normalizers.Normalizer) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    backend.normalizer = normalizers.Sequence(list(steps))
    return Tokenizer(backend)


TOKENIZERS = [
    TOKENIZER,
    train_byte_level_bpe(SAMPLE * 5, 310, nfkc=True),
    normalizing(normalizers.NFD(), normalizers.Lowercase()),
    normalizing(normalizers.NFKC(), normalizers.Strip()),
    normalizing(normalizers.Replace("the", "\n"), normalizers.Prepend("_")),
]


def test_only_a_normaliser_that_stays_within_words_lets_a_text_be_cut():
    assert [tokenizer._is_cut for tokenizer in TOKENIZERS] == [True, True, True, False, False]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS), max_size=60).map("".join))
def test_no_seam_changes_a_token(tokenizer, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 1)
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]


def test_text_without_spaces_is_cut_too(monkeypatch):
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 3)
    assert TOKENIZER.pieces("漢漢漢漢、ひひひ：漢") == ["漢漢漢漢", "、ひひひ", "：漢"]
    assert TOKENIZER.pieces('{"abcd":"efgh"}abc1') == ['{"abcd', '":"efgh', '"}abc', "1"]
    monkeypatch.setattr(data.tokenization.tokenizer, "MAX_WORD_CHARACTERS", 10)
    assert TOKENIZER.pieces("é" * 25 + "1 é") == ["é" * 10, "é" * 10, "é" * 5 + "1", " é"]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS), max_size=30).map("".join), characters=st.integers(1, 30))
def test_the_end_of_a_text_has_the_tokens_of_the_whole(tokenizer, text, characters):
    whole = tokenizer.encode(text)
    end = tokenizer.encode(tokenizer._end(text, characters))
    assert end == whole[len(whole) - len(end) :]


def test_the_end_is_read_no_further_than_it_has_to(monkeypatch):
    text = "zq " * 50_000
    lengths = []
    encode = Tokenizer._encode_pieces

    def counted(self, pieces):
        lengths.extend(map(len, pieces))
        return encode(self, pieces)

    monkeypatch.setattr(Tokenizer, "_encode_pieces", counted)
    assert TOKENIZER.encode_end(text, 10) == TOKENIZER.encode(text)[-10:]
    assert 4000 < lengths[0] <= 4096 and len(lengths) == 1


def test_other_threads_run_while_the_end_of_a_text_is_encoded():
    doubled = ["a" * 2**power for power in range(8)]
    model = models.BPE({token: i for i, token in enumerate(doubled)}, [(token, token) for token in doubled[:-1]])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        encoding, n_turns = threads.submit(Tokenizer(backend).encode_end, "a" * 2**20, 9), 0
        while not encoding.done():
            n_turns += 1
            time.sleep(0.001)
    assert encoding.result() == [7] * 9 and n_turns > 20


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.n_vocab - 1), min_size=1, max_size=9))
def test_no_tokens_have_more_bytes_than_the_most(ids):
    assert len(b"".join(map(TOKENIZER.bytes_of, ids))) <= TOKENIZER.most_bytes(len(ids))


def test_the_most_bytes_are_those_of_the_longest_token_or_have_no_limit():
    assert TOKENIZER.most_bytes(7) == 7 * len("<|endoftext|>")
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    backend.normalizer = tokenizers.normalizers.Strip()
    assert Tokenizer(backend).most_bytes(7) == float("inf")


def test_the_end_is_widened_until_it_holds_enough_tokens():
    text = "a" * 5000 + " " + "the end of the text " * 2
    prefixing = train_byte_level_bpe(["a" * 4096] * 2, 290)
    for n_tokens in (1, 30, 60, 5000):
        assert prefixing.encode_end(text, n_tokens) == prefixing.encode(text)[-n_tokens:]


def test_pieces_are_encoded_a_few_at_a_time(monkeypatch):
    text = " ".join(SAMPLE)
    expected = TOKENIZER.encode(text)
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 3)
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECES_AT_ONCE", 2)
    assert TOKENIZER.encode_batch([text, "", text]) == [expected, [], expected]
    assert list(data.tokenization.tokenizer._groups(["abc", "def", "g", "hij", "klm", "n"])) == [
        ["abc", "def"],
        ["g", "hij", "klm"],
        ["n"],
    ]


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_a_pretrained_tokenizer_is_read_from_the_cache(tmp_path, monkeypatch, files):
    """Hugging Face's cache as programs fill it: older ones, such as GPT-Neo's, kept the two files only."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--gpt2" / "snapshots" / "abc"
    (tmp_path / "models--gpt2" / "refs").mkdir(parents=True)
    (tmp_path / "models--gpt2" / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True)
    trained = train_byte_level_bpe(["the cat sat"] * 5, 270)
    if len(files) == 1:
        (snapshot / "tokenizer.json").write_text(trained.to_json())
    else:
        model = json.loads(trained.to_json())["model"]
        (snapshot / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (snapshot / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    found = load_tokenizer("gpt2", is_pretrained=True)
    assert (found.n_vocab, found.eos_id) == (trained.n_vocab, 0)
    assert found.encode("the cat<|endoftext|>") == trained.encode("the cat<|endoftext|>")


LEFT_IN_A_FILE = {
    "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<|padding|>",
    },
}


@pytest.mark.parametrize("left", ["truncation", "padding", "dropout"])
def test_what_a_program_left_in_a_file_is_switched_off_and_said(tmp_path, capsys, left):
    values = json.loads(TOKENIZER.to_json())
    if left == "dropout":
        values["model"]["dropout"] = 0.9
    else:
        values[left] = LEFT_IN_A_FILE[left]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(values))
    loaded = load_tokenizer(str(path))
    text = SAMPLE[0] * 9
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.encode_batch([text, "a"]) == [TOKENIZER.encode(text), TOKENIZER.encode("a")]
    assert pickle.loads(pickle.dumps(loaded)).encode(text) == TOKENIZER.encode(text)
    assert json.loads(loaded.to_json()) == json.loads(TOKENIZER.to_json())
    load_tokenizer(str(path))
    assert capsys.readouterr().err == f"{path}: {left} in it is switched off: texts are encoded whole\n"


ADDED = ["naïve", "đem", "Ġ", "漢字", "ÿ", "plain", "e\u0301"]


@pytest.mark.parametrize("is_in_sequence", [False, True])
@pytest.mark.parametrize("is_special", [False, True])
def test_added_tokens_stand_for_their_own_letters(is_special, is_in_sequence):
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    if is_in_sequence:
        backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    new = [word for word in ADDED if backend.token_to_id(word) is None]  # Ġ and ÿ are letters for bytes
    (backend.add_special_tokens if is_special else backend.add_tokens)(new)
    tokenizer = Tokenizer(backend)
    ids = [backend.token_to_id(word) for word in new]
    assert [tokenizer.bytes_of(i).decode() for i in ids] == new
    assert tokenizer.decode([*ids, *tokenizer.encode(" é")]) == "".join(new) + " é"
    assert tokenizer.token_byte_lengths()[ids].tolist() == [0 if is_special else len(word.encode()) for word in new]
    if not is_special:
        text = "a naïve 漢字"
        assert tokenizer.token_byte_lengths()[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_stop_finds_the_letters_of_an_added_token():
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    backend.add_tokens(["đem"])
    tokenizer, detokenizer = Tokenizer(backend), Detokenizer(["đe"])
    for token in tokenizer.encode("the đem end"):
        detokenizer.add(ScoredToken(token, 0.0, ()), tokenizer.bytes_of(token))
    chunk = detokenizer.take("length")
    assert (chunk.text, chunk.finish_reason) == ("the ", "stop")


def test_a_folder_with_added_tokens_is_read_with_their_ids(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 20, "héé": 14, "[PAD]": 11}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": {"content": "[PAD]"}, "additional_special_tokens": []})
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.n_vocab == 21
    assert tokenizer.encode("he<x>héé") == [8, 20, 14]
    assert 11 not in tokenizer.encode("[PAD]") and 10 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([8, 20, 14, 11, 13]) == "he<x>héé[PAD]"
    assert tokenizer.token_byte_lengths().tolist() == [*[1] * 8, 2, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 3]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("he<x>héé") == [8, 20, 14] and copy.to_json() == tokenizer.to_json()


def test_a_tokenizer_config_says_what_an_added_token_is(tmp_path):
    write_folder(tmp_path)
    decoder = {"30": {"content": "<a>", "special": True}, "12": {"content": "<b>", "lstrip": True, "special": False}}
    config = {"added_tokens_decoder": decoder, "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.n_vocab, tokenizer.encode("he <b>")) == (31, [5, 8, 12])
    assert 30 not in tokenizer.encode("<a>")


def test_added_tokens_beside_a_json_file_are_read_too(tmp_path):
    save_tokenizer(TOKENIZER, str(tmp_path / "tokenizer.json"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 400}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.n_vocab, tokenizer.encode("<x>"), tokenizer.eos_id) == (401, [400], 0)


@pytest.mark.parametrize(
    "model",
    [
        models.BPE({"a": 0, "b": 1, "ab": 7}, [("a", "b")]),
        models.WordLevel({"ab": 7, "a": 1, "[UNK]": 0}, unk_token="[UNK]"),
        models.WordPiece({"ab": 7, "[UNK]": 0}, unk_token="[UNK]"),
    ],
)
def test_ids_may_have_gaps(model):
    backend = tokenizers.Tokenizer(model)
    assert Tokenizer(backend).n_vocab == 8
    values = json.loads(backend.to_str())
    values["added_tokens"] = [added_token("<x>", 12), added_token("<y>", 9)]
    tokenizer = from_json(json.dumps(values))
    assert (tokenizer.n_vocab, tokenizer.encode("ab<x>ab<y>")) == (13, [7, 12, 7, 9])


def added_token(content: str, token_id: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token_id, "content": content} | flags


@pytest.mark.parametrize(
    ("model", "token", "reason"),
    [
        (models.BPE({"a": 0, "b": 1}, []), ("<x>", 1), "the added token <x> has the id 1, which is that of b"),
        (models.BPE({"a": 0, "b": 1}, []), ("a", 5), "the added token a has the id 5, but the vocabulary gives it 0"),
        (models.Unigram([("a", 0.0)], None), ("<x>", 5), "the added token <x> has the id 5 after a gap"),
    ],
)
def test_ids_that_cannot_be_given_are_refused(tmp_path, model, token, reason):
    values = json.loads(tokenizers.Tokenizer(model).to_str())
    values["added_tokens"] = [added_token(*token)]
    (tmp_path / "t.json").write_text(json.dumps(values))
    assert reason in error_of(f"{tmp_path}/t.json")


@pytest.mark.parametrize("order", [1, -1])
def test_a_gap_moves_no_id_before_it(order):
    ids = {"<u>": 310, "<v>": 311, "<x>": 320, "<y>": 330}
    values = json.loads(TOKENIZER.to_json())
    values["added_tokens"] += [added_token(*item) for item in ids.items()][::order]
    tokenizer = from_json(json.dumps(values))
    assert tokenizer.encode("<u><v>the<x><y>") == [310, 311, *TOKENIZER.encode("the"), 320, 330]
    assert tokenizer.unused_ids(331) == ((312, 320), (321, 330))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("added_tokens.json", {"<x>": 12, "<y>": 12}, "the added token <y> has the id 12, which is that of <x>"),
        ("added_tokens.json", {"<x>": 12.5}, "'float' object cannot be interpreted as an integer"),
        ("added_tokens.json", {"<x>": None}, "'NoneType' object cannot be interpreted as an integer"),
        ("added_tokens.json", ["<x>"], "added_tokens.json does not hold an object"),
        ("tokenizer_config.json", [], "tokenizer_config.json does not hold an object"),
        ("special_tokens_map.json", "<x>", "special_tokens_map.json does not hold an object"),
        ("special_tokens_map.json", {"pad_token": None, "additional_special_tokens": None}, None),
        ("tokenizer_config.json", {"added_tokens_decoder": None}, None),
    ],
)
def test_what_lies_beside_a_vocabulary_is_read_or_refused_in_a_line(tmp_path, name, content, reason):
    write_folder(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    if reason:
        told = f"{tmp_path}: vocab.json and merges.txt are not a BPE ({reason}); copy them again"
        assert error_of(str(tmp_path)) == told
    else:
        assert load_tokenizer(str(tmp_path)).encode("he") == [8]


def test_a_panic_of_the_library_is_an_error(tmp_path):
    values = json.loads(TOKENIZER.to_json())
    values["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "t.json").write_text(json.dumps(values))
    assert "t.json: not a tokenizers JSON file (the library fails on it: " in error_of(f"{tmp_path}/t.json")


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (models.BPE({"a": 0}, []), "has no token for unknown characters: those outside its vocabulary are left out\n"),
        (models.BPE({"a": 0, "?": 1}, [], unk_token="?"), ""),
        (models.BPE({"a": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}, [], byte_fallback=True), ""),
        (models.WordLevel({"a": 0}, unk_token="?"), ""),
    ],
)
def test_a_tokenizer_that_loses_characters_is_named(tmp_path, capsys, model, line):
    path = tmp_path / "t.json"
    path.write_text(tokenizers.Tokenizer(model).to_str())
    assert load_tokenizer(str(path)).encode("a") == [0]
    assert capsys.readouterr().err == (line and f"{path}: {line}")


@pytest.mark.parametrize("encode", [Tokenizer.encode, lambda t, text: t.encode_batch([text])])
@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}, unk_token="?"), models.BPE({"a": 0}, [], unk_token="?")])
def test_a_text_that_cannot_be_encoded_is_refused(model, encode):
    with pytest.raises(DataError, match=r"the tokenizer cannot encode a text \(.*\?|UNK.*\); give one that has"):
        encode(Tokenizer(tokenizers.Tokenizer(model)), "b")


def with_added(*special: str, plain: tuple[str, ...] = ()) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(plain))
    return Tokenizer(backend)


def test_special_tokens_that_a_text_spells_count_when_asked():
    tokenizer = with_added("<|user|>", "</s>")
    reading, text = tokenizer.reading_special_tokens, "<|user|>the end</s><|endoftext|>"
    expected = [310, *tokenizer.encode("the end"), 311, 0]
    assert reading.encode(text) == reading.encode_batch([text])[0] == reading.encode_end(text, 99) == expected
    assert pickle.loads(pickle.dumps(reading)).encode(text) == expected
    assert not {310, 311, 0} & set(tokenizer.encode(text))
    assert tokenizer.describe_spelled(text * 2) == "<|endoftext|> 2 times, <|user|> 2 times, </s> 2 times"
    assert (reading.describe_spelled(text), tokenizer.describe_spelled("the end")) == ("", "")
    assert reading.to_json() == tokenizer.to_json()


def test_real_special_tokens_are_shown_apart_from_spelled_ones():
    tokenizer = with_added("<|user|>", plain=("naïve",))
    ids = [310, *tokenizer.encode("<|user|>é naïve"), 310, 1]
    assert tokenizer.decode_marked(ids) == "⟦<|user|>⟧<|user|>é naïve⟦<|user|>⟧⟦<|padding|>⟧"


@pytest.mark.parametrize("reads", [False, True])
@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.sampled_from(["<s>", "</s>", "<a b>", "<a", "b>", " ", "the", "\n", ".", "1"]), max_size=30))
def test_no_cut_changes_an_added_token(reads, text):
    tokenizer = with_added("</s>", "<a b>", plain=("<s>",))
    tokenizer, text = tokenizer.reading_special_tokens if reads else tokenizer, "".join(text)
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 1)
        assert "".join(tokenizer.pieces(text)) == text
        assert tokenizer.encode_batch([text]) == [whole]
    for characters in range(1, len(text)):
        end = tokenizer.encode(tokenizer._end(text, characters))
        assert end == whole[len(whole) - len(end) :]


def with_special(*special: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate("abc")}, []))
    backend.add_special_tokens(list(special))
    return backend


ENDS_BY_NAME = [
    (("</s>", "<pad>"), ("</s>", "<pad>")),
    (("<s>", "</s>", "<unk>"), ("</s>", None)),
    (("<eos>", "<bos>", "<pad>"), ("<eos>", "<pad>")),
    (("[EOS]", "[PAD]"), ("[EOS]", "[PAD]")),
    (("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), ("<|end_of_text|>", None)),
    (("<|im_start|>", "<|im_end|>"), ("<|im_end|>", None)),
    (("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("<|endoftext|>", None)),
    (("<|endoftext|>", "</s>", "<|padding|>", "<pad>"), ("<|endoftext|>", "<|padding|>")),
    (("</s>", "<|im_end|>"), (None, None)),
    (("[CLS]", "[SEP]", "[PAD]"), (None, "[PAD]")),
    (("<|user|>",), (None, None)),
]


@pytest.mark.parametrize(("special", "expected"), ENDS_BY_NAME)
def test_well_known_names_end_documents_where_there_is_just_one(tmp_path, special, expected, capsys):
    backend = with_special(*special)
    backend.save(f"{tmp_path}/t.json")
    tokenizer = load_tokenizer(f"{tmp_path}/t.json")
    assert (tokenizer.ends.eos, tokenizer.ends.padding) == expected
    ids = tuple(None if name is None else backend.token_to_id(name) for name in expected)
    for same in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), tokenizer.reading_special_tokens):
        assert (same.eos_id, same.padding_id) == ids
    said = capsys.readouterr().err
    assert [f": {name} " in said for name in expected] == [name not in (None, *OWN) for name in expected]
    assert list(tokenizer.files()) == ["tokenizer.json"]


OWN = ("<|endoftext|>", "<|padding|>")
FOLDERS = {
    "strings": ({"tokenizer_config.json": {"eos_token": "<x>", "pad_token": "<y>"}}, ("<x>", "<y>")),
    "objects": ({"special_tokens_map.json": {"eos_token": {"content": "<x>"}, "pad_token": None}}, ("<x>", "<pad>")),
    "both": (
        {
            "tokenizer_config.json": {"eos_token": "<x>", "pad_token": None, "bos_token": "<y>"},
            "special_tokens_map.json": {"eos_token": "</s>", "pad_token": "<y>"},
        },
        ("<x>", "<y>"),
    ),
    "padding with the end": ({"tokenizer_config.json": {"eos_token": "<x>", "pad_token": "<x>"}}, ("<x>", None)),
    "another end than ours": ({"tokenizer_config.json": {"eos_token": "</s>"}}, ("</s>", "<pad>")),
    "a token that is not there": ({"tokenizer_config.json": {"eos_token": "<gone>"}}, ("<|endoftext|>", "<pad>")),
    "nothing": ({"tokenizer_config.json": {"add_bos_token": True}}, ("<|endoftext|>", "<pad>")),
}


@pytest.mark.parametrize("named", ["", "/tokenizer.json"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_names_its_ends_and_a_run_keeps_them(tmp_path, folder, named):
    files, expected = FOLDERS[folder]
    with_special("</s>", "<|endoftext|>", "<x>", "<y>", "<pad>").save(f"{tmp_path}/tokenizer.json")
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    tokenizer = load_tokenizer(f"{tmp_path}{named}")
    assert (tokenizer.ends.eos, tokenizer.ends.padding) == expected
    (tmp_path / "run").mkdir()
    for name, content in tokenizer.files().items():
        (tmp_path / "run" / name).write_text(content)
    kept = load_tokenizer(f"{tmp_path}/run/tokenizer.json")
    assert (kept.ends, kept.to_json()) == (tokenizer.ends, tokenizer.to_json())


def test_texts_begin_with_what_the_tokenizer_puts_first(tmp_path):
    backend = with_special("<s>", "</s>")
    assert Tokenizer(backend).start_ids == ()
    ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    tokenizer = Tokenizer(backend)
    assert tokenizer.start_ids == (ids[0][1],) and ids[0][1] not in tokenizer.encode("a")
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_text(content)
    assert load_tokenizer(str(tmp_path)).start_ids == tokenizer.reading_special_tokens.start_ids == (ids[0][1],)


@pytest.mark.parametrize(("adds", "expected"), [(True, (2,)), (False, ()), (None, ())])
def test_a_vocabulary_with_merges_begins_texts_as_its_config_says(tmp_path, adds, expected):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<s>": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    config = {"bos_token": {"content": "<s>"}, **({} if adds is None else {"add_bos_token": adds})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.start_ids == expected
    assert from_json(tokenizer.to_json()).start_ids == expected  # as a run keeps it


def test_a_damaged_file_beside_a_tokenizer_is_named(tmp_path):
    with_special("</s>").save(f"{tmp_path}/tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_tok')
    assert "tokenizer_config.json beside it is not JSON" in error_of(f"{tmp_path}/tokenizer.json")


@pytest.mark.parametrize("token", ["</s>", "[PAD]"])
def test_a_config_may_take_other_ends_than_those_of_well_known_names(token, capsys):
    tokenizer = Tokenizer(with_special("</s>", "[PAD]"))
    other = {"eos_id": 2 if token == "</s>" else 3, "padding_id": 4 if token == "</s>" else 2}
    check_special_ids(tokenizer, dataset(id=f"with other {token}", **other))
    assert capsys.readouterr().err.count(f" = 2: is used, although the tokenizer's {token} is ") == 1
