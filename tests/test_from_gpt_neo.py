"""Each line of GPT-Neo's page and notebook, as docs/from-gpt-neo.md lists them, run by our programs in this process."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import huggingface_hub
import pytest

import main
import run_experiment
from commands.options import idle_by_other_keys
from configs.datasets import DATASET_FIELDS
from configs.load import load_config
from configs.schema import ALIASES, DATASET_INERT_KEYS, RUN_FIELDS, RunConfig
from data import create_tfrecords, train_tokenizer
from data.tfrecord.records import read_examples
from data.tokenization.bpe_training import train_byte_level_bpe
from meshtf import tf

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "from-gpt-neo.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## What GPT-Neo's page shows\n")[1].split("\n## ")[0]
LINES = re.findall(r"^\| `(.*?)`.* \| .* \|$", SECTION, re.MULTILINE)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far", "from", "home", "while", "it"]
MODEL = {"n_head": 2, "n_embd": 16, "n_layer": 1, "n_ctx": 16, "n_vocab": 50257, "model_path": "runs/mine"}
MODEL |= {"train_batch_size": 2, "train_steps": 4, "predict_steps": 0, "eval_steps": 2, "datasets": ["mine"]}
IDS = {
    "n_vocab": 50257,
    "tokenizer_is_pretrained": True,
    "tokenizer_path": "gpt2",
    "eos_id": 50256,
    "padding_id": 50257,
}
MINE = IDS | {"path": "mine/mine_0_*.tfrecords", "eval_path": "mine/mine_0_*.tfrecords", "eos_id": 0, "padding_id": 1}
PROGRAMS = {
    "data/train_tokenizer.py": train_tokenizer.main,
    "data/create_tfrecords.py": create_tfrecords.main,
    "main.py": main.main,
}
TEST_DATA = os.environ.get("NEOMESH_TEST_DATA", "")
Check = Callable[[str, pytest.CaptureFixture[str]], None]


def fill_cache(hub: Path, files: Mapping[str, str]) -> None:
    """Writes files into a cache of Hugging Face, under the name gpt2."""
    model = hub / "models--gpt2"
    for new in (model / "refs", model / "snapshots" / "abc"):
        new.mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    for name, text in files.items():
        (model / "snapshots" / "abc" / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with texts, configs, and Hugging Face's cache, in which a small tokenizer has the name gpt2."""
    folder, draw = tmp_path_factory.mktemp("page"), random.Random(1)
    for new in ("texts", "dataset_configs"):
        (folder / new).mkdir()
    for number in range(8):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(draw.choices(WORDS, k=1 + 9 * number)))
    (folder / "prompt.txt").write_text("the cat")
    (folder / "mine.json").write_text(json.dumps(MODEL))
    (folder / "dataset_configs" / "mine.json").write_text(json.dumps(MINE))
    tokenizer = train_byte_level_bpe([" ".join(draw.choices(WORDS, k=99))], 290)
    fill_cache(folder / "hub", {"tokenizer.json": tokenizer.to_json()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(create_tfrecords, "DATASET_CONFIGS", folder / "dataset_configs")
        patch.delenv("COLAB_TPU_ADDR", raising=False)
        patch.chdir(folder)
        flags = "--input_dir texts --name mine --output_dir mine --processes 1 --chunk_size 16"
        assert create_tfrecords.main(flags.split()) == 0
        yield


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Runs a command; returns its status and what it prints."""
    _, program, *arguments = shlex.split(line)
    capsys.readouterr()
    return PROGRAMS[program](arguments), *capsys.readouterr()


def stops(status: int, message: str) -> Check:
    """The command gets as far as this message; lines before it say what has no effect."""

    def check(line: str, capsys: pytest.CaptureFixture[str]) -> None:
        if "--gpu_ids" in line and tf.config.list_physical_devices("GPU"):
            pytest.skip("GPUs are there")
        ended, out, err = run(line, capsys)
        assert (ended, err.splitlines()[-1][: len(message)]) == (status, message)

    return check


def prints(message: str, replaced: Sequence[str] = ("", "")) -> Check:
    """The command succeeds, and prints this among others."""

    def check(line: str, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = run(line.replace(*replaced), capsys)
        assert (status, err) == (0, "") and message in out

    return check


def means(parse: Callable[[Sequence[str]], object], base: str, todays: str) -> Check:
    """The flags are parsed as today's."""

    def check(line: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert parse(shlex.split(f"{base} {line}")) == parse(shlex.split(f"{base} {todays}"))

    return check


def loaded(keys: str, dataset: dict) -> RunConfig:
    """The config of a model with these keys, as a file has them, in place of the tiny model's."""
    given = json.loads("{" + re.sub("#.*", "", keys) + "}")
    replaced = {*given, *("n_head" for key in given if key == "n_heads")}
    others = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in MODEL.items() if key not in replaced]
    Path("dataset_configs/row.json").write_text(json.dumps(dataset))
    Path("row.json").write_text("{" + ", ".join(others) + f", {keys}\n}}")
    return load_config("row.json", ["mesh_shape=x:2"] if "layout" in given else [])


def config(todays: str) -> Check:
    """The keys of the model config load as today's."""
    return lambda line, capsys: _equal(loaded(line, MINE), loaded(todays, MINE))


def dataset(todays: str) -> Check:
    """The keys of the dataset config load as today's."""
    own = IDS | {"path": "a", "eval_path": "b"}

    def check(line: str, capsys: pytest.CaptureFixture[str]) -> None:
        configs = [loaded('"datasets": ["row"]', own | json.loads("{" + keys + "}")) for keys in (line, todays)]
        _equal(*configs)

    return check


def _equal(one: RunConfig, other: RunConfig) -> None:
    assert one == other


def makes_documents(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    prints("7 records of one document each")(line, capsys)
    (path,) = Path("docs").glob("docs_0_0_7.tfrecords")
    lengths = [len(ids) for ids in read_examples(str(path))]
    assert lengths == sorted(set(lengths)) and lengths[0] > 3  # the text of one word is left out


def makes_chunks(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    prints("of padding at the end")(line, capsys)
    written = json.loads(Path(f"dataset_configs/{re.search('--name (.*?) ', line).group(1)}.json").read_text())
    assert (written["tokenizer_path"], written["tokenizer_is_pretrained"], written["eos_id"]) == ("gpt2", True, 0)


def starts_an_experiment(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    own, others = run_experiment.parse_arguments(shlex.split(line)[2:])
    parsed = main.parse_arguments(others)
    assert (own.experiment_name, parsed.tpu, parsed.model) == ("first", "colab", "mine.json")


def have_no_effect(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_experiment.main([*shlex.split(line), "--list", "--store", "none"]) == 0
    assert [text.split(" has")[0] for text in capsys.readouterr().err.splitlines()] == shlex.split(line)


def masked(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = idle_by_other_keys(loaded(line, MINE))
    assert said == "row: predict_steps: no effect, since mlm_training is true: masked models generate no text"


def needs_a_run(rest: Check) -> Check:
    """Without a checkpoint, the command says so; with one, it gets further."""

    def check(line: str, capsys: pytest.CaptureFixture[str]) -> None:
        stops(2, "model_path = runs/mine: holds no checkpoint")(line, capsys)
        run_folder = Path("runs/mine")
        run_folder.mkdir(parents=True, exist_ok=True)
        tf.raw_ops.SaveV2(
            prefix="runs/mine/model.ckpt-1",
            tensor_names=["global_step"],
            shape_and_slices=[""],
            tensors=[tf.constant(1, tf.int64)],
        )
        (run_folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"\n')
        try:
            rest(line, capsys)
        finally:
            shutil.rmtree(run_folder)

    return check


NO_TPU = stops(2, "--tpu colab: COLAB_TPU_ADDR is not set: ")
NO_GPU = stops(2, "--gpu_ids device:GPU:0: no such device; ")
CREATE, DOCUMENTS = create_tfrecords.parse_arguments, '"input_fn": "generic_text", "datasets": '
GLOBS = IDS | {"id": "bundestag", "path": "bundestag_*.tfrecords", "eval_path": None}
CHECKS: tuple[tuple[str, Check], ...] = (
    ("python data/train_tokenizer.py --base_dir", prints("tokenizer saved at ./tokenizer/byte-level-bpe.tokenizer")),
    ("--file-type", means(train_tokenizer.parse_arguments, "--base_dir a", "--file_type txt --vocab_size 50257")),
    ("python3 data/create_tfrecords.py --mode documents", makes_documents),
    ("--base_dir", means(CREATE, "", "--input_dir texts")),
    ("--separator", means(CREATE, "--input_dir a", "--separator 0")),
    ("--no_ftfy", means(CREATE, "--input_dir a", "")),
    ("python data/create_tfrecords.py --input_dir texts --name chunks", makes_chunks),
    ("python data/create_tfrecords.py --input_dir texts --name wikitext", makes_chunks),
    ("python3 main.py --model mine.json --steps_per_checkpoint 500 --tpu", NO_TPU),
    ("python3 main.py --model mine.json --steps_per_checkpoint 500 --gpu_ids device", NO_GPU),
    ("python3 main.py --model mine.json --steps_per_checkpoint 500 --gpu_ids 0", NO_GPU),
    ("python3 main.py --predict --prompt prompt.txt --tpu", needs_a_run(NO_TPU)),
    ("python3 main.py --predict --prompt prompt.txt --gpu_ids", needs_a_run(NO_GPU)),
    ("python3 main.py --model mine.json --steps_per_checkpoint 500 --tpu colab --predict", needs_a_run(NO_TPU)),
    ("python3 main.py --eval --tpu", needs_a_run(NO_TPU)),
    ("python3 main.py --model mine.json --export", stops(2, "model_path = runs/mine: holds no checkpoint")),
    ("python3 main.py --model mine.json --new", NO_TPU),
    ("python main --model mine.json --check_dataset", prints("largest id", (" main ", " main.py "))),
    ("python3 main.py --model mine.json --auto_layout", stops(2, "--auto_layout: the config has no mesh_shape; ")),
    ("python3 main.py --model mine.json --auto_layout_and_mesh_shape", prints("mesh_shape")),
    ("python3 run_experiment.py", starts_an_experiment),
    ("--autostack", have_no_effect),
    ('"n_heads"', config('"n_head": 2')),
    ('"axial_pos_emb_"', config('"axial_pos_emb": [4, 4]')),
    ('"mlm_training"', masked),
    ('"train_steps"', config('"train_steps": 9')),
    (
        '"datasets": [["mine", 25, "documents_random"',
        config('"input_fn": "sequential_input", "datasets": [["mine", 25, "documents_random", 1.0]]'),
    ),
    ('"datasets": [["mine", 25, "random_sample"', config(DOCUMENTS + '[["mine", 25, "documents_random", 1.0]]')),
    ('"datasets": [["mine", null', config('"datasets": ["mine"]')),
    ('"datasets": [["bundestag', config(DOCUMENTS + json.dumps([[GLOBS, 10, "documents_random", 1.0]]))),
    ('"n_vocab"', dataset('"n_vocab": 50257')),
    ('"path"', dataset('"path": null')),
    ('"layout"', config('"layout": "heads:x"')),
    ('"ada_epsilon1"', config('"ada_epsilon1": 1e-30')),
    ('"eval_tasks"', config('"eval_tasks": ["lambada_openai"]')),
)


def test_every_line_has_its_check() -> None:
    assert len(LINES) == len(CHECKS)
    assert [line for line, (start, _) in zip(LINES, CHECKS, strict=True) if not line.startswith(start)] == []


@pytest.mark.parametrize(("line", "check"), [(line, check) for line, (_, check) in zip(LINES, CHECKS, strict=False)])
def test_a_line_of_the_page_does_what_the_table_says(
    line: str, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    check(line, capsys)


def test_every_key_of_the_page_and_of_the_code_is_known() -> None:
    """The keys that GPT-Neo's page describes or its code reads from a model config or a dataset config."""
    model = """n_heads n_head n_embd n_vocab n_ctx n_layer embed_dropout res_dropout attn_dropout lr lr_decay
    lr_decay_end warmup_steps opt_name beta1 beta2 epsilon ada_epsilon1 ada_epsilon2 weight_decay
    train_batch_size train_steps eval_steps eval_batch_size eval_tasks predict_steps predict_batch_size
    predict_max_steps iterations datasets model_path scale_by_depth scale_by_in mesh_shape layout
    activation_function activation_fn attention_types precision tokens_per_mb_per_replica moe_layers
    moe_params moe_activation axial_pos_emb_ axial_pos_emb rotary_emb mlp_glu scalenorm rezero
    num_mem_kv macaron no_weight_tie share_parameters recompute_grad gradient_clipping z_loss
    entmax_loss local_attention_radius log_grads seed shuffle_input_filenames remove_partial_sequences
    no_dataset input_fn mlm_training mlm_mask_id mlm_cls_token_id mlm_mask_prob mlm_same_token_prob
    mlm_random_token_prob mlm_mask_ignore_ids padding_id eos_id"""
    dataset = "n_vocab path eval_path tokenizer_path tokenizer_is_pretrained eos_id padding_id lambada_tokens_path"
    assert set(model.split()) - {*RUN_FIELDS, *ALIASES} == set()
    assert set(dataset.split()) - {*DATASET_FIELDS, *DATASET_INERT_KEYS} == set()


@pytest.mark.skipif(not TEST_DATA, reason="NEOMESH_TEST_DATA names no folder with GPT-2's tokenizer")
def test_gpt2_from_a_cache_that_an_older_program_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(TEST_DATA, "gpt2_tokenizer")
    files = {name: (folder / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")}
    fill_cache(tmp_path / "hub", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the cat sat", encoding="utf-8")
    flags = "--mode documents --input_dir texts --name a --output_dir out --use_gpt2_tokenizer --separator [50256]"
    assert create_tfrecords.main([*flags.split(), "--minimum_size", "2"]) == 0
    assert [ids.tolist() for ids in read_examples("out/a_0_0_1.tfrecords")] == [[1169, 3797, 3332]]

    entries = {"globs": ["out/a_*.tfrecords", "", 10, "random_sample", 1.0], "notebook": ["notebook", None, None, None]}
    dataset = IDS | {"n_vocab": 50256, "path": "", "eval_path": "out/a_*.tfrecords"}
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "notebook.json").write_text(json.dumps(dataset))
    for entry in entries.values():
        (tmp_path / "m.json").write_text(json.dumps(MODEL | {"n_ctx": 2, "datasets": [entry]}))
        assert main.main(["--model", "m.json", "--check_dataset"]) == 0
        assert "the cat sat" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.processes
def test_an_experiment_gets_as_far_as_the_missing_tpu(tmp_path: Path) -> None:
    (line,) = [line for line in LINES if "run_experiment.py" in line]
    Path("mine.json").write_text(json.dumps(MODEL))
    command = [sys.executable, str(REPOSITORY / "run_experiment.py"), *shlex.split(line)[2:], "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("run 1: FAILED: main.py refused its input: --tpu colab: COLAB_TPU_")
