"""Trains a ranker to tell the true next turn from another conversation's at the same place, on the chitchat-dataset.

    make chat-quickstart        # or any other way to get the conversations
    python3 benchmarks/ranking.py --judgements dstc7-task2-human_eval.tgz

A twentieth of the conversations is held out. A small language model is trained on the others, and from its weights a
ranker on their pairs, as DialogRPT's are trained from DialoGPT. Beside it stands a bag of words: the words that a
response shares with its context, weighted by rarity. With --judgements, the ranker scores the answers of DSTC-7's
systems, and its table of scores is compared with people's judgements. The last line is a JSON object with the results.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.load import load_config
from data.dialogue.pairs import Pair
from data.tokenization.tokenizer import load_tokenizer
from runtime.checkpoint.init_from import load_initial_weights
from runtime.generation.reranking import build_response_scorer
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from runtime.run.metrics import read_metrics
from tasks.dialogue.human_judgements import read_context_texts, read_judged_answers

REPOSITORY = Path(__file__).resolve().parent.parent
CONVERSATIONS = "datasets/chitchat_dataset/dataset.json"
HELD_OUT = 20  # one conversation in 20 is held out
MAX_TURNS = 6
N_VOCAB = 2048
MODEL = {
    **{"n_head": 4, "n_embd": 128, "n_layer": 3, "n_ctx": 256, "n_vocab": N_VOCAB},
    **{"rotary_emb": True, "scale_attn_weights": True},
}
TRAINING = {
    **{"opt_name": "adamw", "beta2": 0.98, "weight_decay": 0.05, "gradient_clipping": 1.0, "lr_decay": "cosine"},
    **{"iterations": 100, "warmup_steps": 150},
}
LANGUAGE_MODEL = MODEL | TRAINING | {"train_batch_size": 4, "train_steps": 3500, "lr": 0.004}
RANKER = MODEL | TRAINING | {"train_batch_size": 8, "train_steps": 3000, "lr": 0.001, "objective": "ranking"}
WORD = re.compile(r"[a-z']+|\d+")


@dataclasses.dataclass(frozen=True)
class Results:
    """The measured figures.

    Attributes:
        accuracy: share of the held-out pairs whose true turn scores higher.
        interval: of 95 %, taking pairs as independent.
        bag_of_words_accuracy: the same for shared words.
        pairs: held-out pairs.
        training_pairs: pairs to train on.
        seconds: of both trainings and the evaluation.
    """

    accuracy: float
    interval: tuple[float, float]
    bag_of_words_accuracy: float
    pairs: int
    training_pairs: int
    seconds: float


def split(conversations: str, folder: Path) -> None:
    """Writes `train.json` and `held_out.json`."""
    every = json.loads(Path(conversations).read_text(encoding="utf-8"))
    for name, is_held_out in (("train", False), ("held_out", True)):
        some = {
            key: value for number, (key, value) in enumerate(every.items()) if (number % HELD_OUT == 0) == is_held_out
        }
        (folder / f"{name}.json").write_text(json.dumps(some))


def run(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def train(folder: Path, name: str, config: Mapping[str, object], dataset: Mapping[str, object], *flags: object) -> None:
    dataset = {"id": name, "n_vocab": N_VOCAB, "cache_dir": f"{folder}/data", "eval_fraction": 0.0} | dict(dataset)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**config, "datasets": [dataset], "model_path": f"{folder}/{name}"}))
    run(REPOSITORY / "main.py", "--model", file, *flags)


def evaluate(folder: Path) -> dict[str, float]:
    """Returns the figures of the ranker on the held-out pairs."""
    dataset = {"id": "held_out", "pairs": f"{folder}/held_out.jsonl", "n_vocab": N_VOCAB, "eval_fraction": 0.99}
    dataset |= {"cache_dir": f"{folder}/data", "tokenizer_path": f"{folder}/language_model/tokenizer.json"}
    run(REPOSITORY / "main.py", "--model", folder / "ranker", "--eval", "--set", f"datasets={json.dumps([dataset])}")
    return [line for line in read_metrics(f"{folder}/ranker") if line["split"] == "eval"][-1]


def read_pairs(path: Path) -> Iterator[Pair]:
    for line in path.read_text(encoding="utf-8").splitlines():
        for pair in json.loads(line):
            yield Pair(pair["context"], pair["better"], pair["worse"])


def words(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in WORD.findall(text.lower())}


def bag_of_words_accuracy(train: Sequence[Pair], held_out: Sequence[Pair]) -> float:
    """Returns the accuracy of the shared words, each worth its inverse document frequency; ties count half."""
    counts = collections.Counter(word for pair in train for word in words([pair.better]))

    def score(turns: Sequence[str], response: str) -> float:
        said = words([response])
        shared = sum(math.log(len(train) / (1 + counts[word])) for word in said & words(turns))
        return shared / math.sqrt(1 + len(said))

    differences = [score(pair.turns, pair.better) - score(pair.turns, pair.worse) for pair in held_out]
    return sum((each > 0) + 0.5 * (each == 0) for each in differences) / len(differences)


def write_scores(folder: Path, judgements: str) -> str:
    """Writes the ranker's scores of DSTC-7's answers as a table, and returns its path."""
    judged, contexts = read_judged_answers(judgements), read_context_texts(judgements)
    config, tokenizer = load_config(f"{folder}/ranker"), load_tokenizer(f"{folder}/ranker/tokenizer.json")
    placement = place(config.mesh, choose_devices(None, None))
    scorer = build_response_scorer(config, placement, lambda step: step)
    load_initial_weights(f"{folder}/ranker", placement.store)
    systems = [name for name in judged.judgements.systems if name in judged.answers]
    rows = ["\t".join(["key", *systems])]
    for key, context in contexts.items():
        responses = [tokenizer.encode(judged.answers[name].get(key, "") or " ") for name in systems]
        scores = scorer.scores([tokenizer.encode(context)], responses)
        rows.append("\t".join([key, *(f"{score:.6f}" for score in scores)]))
    path = folder / "ranker.tsv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def measure(conversations: str, folder: Path) -> Results:
    folder.mkdir(parents=True, exist_ok=True)
    split(conversations, folder)
    for name in ("train", "held_out"):
        script, source = REPOSITORY / "data/dialogue/draw_pairs.py", folder / f"{name}.json"
        run(script, "--input_dir", source, "--out", source.with_suffix(".jsonl"), "--max_turns", MAX_TURNS)
    begin_seconds = time.monotonic()
    train(folder, "language_model", LANGUAGE_MODEL, {"dialogue": f"{folder}/train.json"})
    train(folder, "ranker", RANKER, {"pairs": f"{folder}/train.jsonl"}, "--init_from", folder / "language_model")
    measured = evaluate(folder)
    seconds = time.monotonic() - begin_seconds
    pairs = [list(read_pairs(folder / f"{name}.jsonl")) for name in ("train", "held_out")]
    accuracy, n_pairs = measured["accuracy"], int(measured["pairs"])
    error = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n_pairs)
    interval = (accuracy - error, accuracy + error)
    return Results(accuracy, interval, bag_of_words_accuracy(*pairs), n_pairs, len(pairs[0]), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", default=CONVERSATIONS, help=f"chitchat's JSON (default: {CONVERSATIONS})")
    parser.add_argument("--judgements", help="DSTC-7's archive of human evaluations")
    parser.add_argument("--folder", default="runs/ranking_benchmark", help="for everything that is made; new")
    given = parser.parse_args()
    if not os.path.isfile(given.conversations):
        parser.error(
            f"--conversations {given.conversations}: is not there; pip install --target datasets chitchat-dataset"
        )
    results = measure(given.conversations, Path(given.folder))
    if given.judgements:
        run("-m", "tasks.dialogue.agreement", given.judgements, write_scores(Path(given.folder), given.judgements))
    print(json.dumps(dataclasses.asdict(results)))


if __name__ == "__main__":
    main()
