"""Flags with dashes and underscores, in every program."""

from __future__ import annotations

import pytest

import main
import run_experiment
from configs.command_line import CommandLine
from data import check_tfrecords, create_tfrecords, train_tokenizer


@pytest.mark.parametrize("program", [main._parser(), run_experiment._parser()], ids=["main", "run_experiment"])
def test_every_flag_is_taken_with_dashes(program: CommandLine) -> None:
    flags = [flag for flag in program._option_string_actions if "_" in flag]
    assert len(flags) > 5
    assert [program._as_declared("--" + flag[2:].replace("_", "-") + "=a-b") for flag in flags] == [
        f"{flag}=a-b" for flag in flags
    ]


@pytest.mark.parametrize(
    ("parse", "flags"),
    [
        (train_tokenizer.parse_arguments, "--base_dir a-b --output_dir c --file_type txt --vocab_size 300 --nfkc"),
        (create_tfrecords.parse_arguments, "--input_dir a-b --files_per 3 --wikitext_detokenize --max_documents=3"),
        (check_tfrecords.parse_arguments, "a-b.tfrecords --encoder_path c --n_vocab 3 --repair --repair_dir=d-e"),
        (main.parse_arguments, "--model a-b --steps_per_checkpoint 3 --sacred_id=d-e --cpu_devices 2"),
        (run_experiment.parse_arguments, "--experiment_name a-b --heartbeat_timeout=3 --no_delete_tpu"),
    ],
    ids=["train_tokenizer", "create_tfrecords", "check_tfrecords", "main", "run_experiment"],
)
def test_dashes_mean_underscores_in_flags_and_not_in_values(parse, flags: str) -> None:
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in flags.split()]
    assert parse(dashed) == parse(flags.split())


def test_words_that_are_no_flags_of_the_program_stay_as_they_are() -> None:
    parser = CommandLine()
    parser.add_argument("--the_text")
    assert parser.parse_known_args(["--the-text", "a--the-text b", "--other-flag", "x"])[1] == ["--other-flag", "x"]
    assert parser.parse_args(["--the-text=--the-text"]).the_text == "--the-text"


def test_an_experiment_sets_its_own_id_however_it_is_spelled() -> None:
    for flag in ("--sacred_id", "--sacred-id"):
        with pytest.raises(run_experiment.ConfigError, match="^--sacred_id: is set to the number of the run"):
            run_experiment.parse_arguments(["--model", "m", f"{flag}=3"])


@pytest.mark.parametrize(
    ("typed", "number"), [("8", 8), ("+8", 8), ("8.", 8), ("8e0", 8), ("1e3", 1000), ("1_000", 1000), ("-1e2", -100)]
)
def test_integers_as_people_type_them(typed: str, number: int) -> None:
    assert (
        main.parse_arguments(["--model", "a", "--steps_per_checkpoint", "9", "--host_index", typed]).host_index
        == number
    )


@pytest.mark.parametrize("typed", ["8.5", "many", "", "true", "1e400", "nan"])
def test_what_is_no_integer_is_refused(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.parse_arguments(["--model", "a", "--host_index", typed])
    assert capsys.readouterr().err.endswith(f"error: argument --host_index: {typed!r} is not an integer; give one\n")


def test_negative_numbers_of_any_form_and_switches_with_values() -> None:
    words = ["--model", "a", "--predict", "--presence_penalty", "-1e-3", "--frequency_penalty", "-.5", "--never_end"]
    given = main.parse_arguments([*words, "--entmax_sampling", "False", "--stop", "-5", "-6"])
    overrides = ["--presence_penalty=-1e-3", "--frequency_penalty=-.5", "--never_end=true", "--entmax_sampling=False"]
    assert set(main.config_overrides(given)) == {*overrides, '--stop=["-5", "-6"]'}


@pytest.mark.parametrize(
    ("parse", "words", "name"),
    [
        (train_tokenizer.parse_arguments, "--vocab_size 300 --base_dir ~/x//y", "base_dir"),
        (create_tfrecords.parse_arguments, "--input_dir a --output_dir $HOME/x//y", "output_dir"),
        (check_tfrecords.parse_arguments, "a --picture ${HOME}/x//y", "picture"),
        (main.parse_arguments, "--model a --prompt ~/x//y", "prompt"),
        (main.parse_arguments, "--model ~//x/y", "model"),
        (lambda words: run_experiment.parse_arguments(words)[0], "--store ~/x//y", "store"),
    ],
)
def test_paths_of_every_program(monkeypatch: pytest.MonkeyPatch, parse, words: str, name: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(getattr(parse(words.split()), name)) == "/home/me/x/y"
