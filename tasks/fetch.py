"""Downloads the published files of tasks and verifies them.

The files are those of llm-foundry (https://github.com/mosaicml/llm-foundry, Apache-2.0), at one commit of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from configs.errors import DataError, UserError, did_you_mean
from storage.download import UnreachableError, download, has_checksum
from storage.files import is_local
from storage.locks import locked

LOCK = ".fetching"
LLM_FOUNDRY = (
    "https://raw.githubusercontent.com/mosaicml/llm-foundry/8c8dd48f72168c5d51e2f7b151595892a8fba43d"
    "/scripts/eval/local_data"
)


@dataclass(frozen=True)
class PublishedFile:
    """Where a file is published.

    Attributes:
        url: the address.
        checksum: as `checksum_of` returns it.
    """

    url: str
    checksum: str


def _of_llm_foundry(path: str, checksum: str) -> PublishedFile:
    return PublishedFile(f"{LLM_FOUNDRY}/{path}.jsonl", checksum)


# By the name of the task. Git's checksum stands where the content of a large file was not to be had.
PUBLISHED: dict[str, PublishedFile] = {
    "lambada_openai": _of_llm_foundry(
        "language_understanding/lambada_openai",
        "sha256:411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
    ),
    "hellaswag": _of_llm_foundry("language_understanding/hellaswag", "git:448321079fdc140bd8566b16b24eda9ceacd3501"),
    "winogrande": _of_llm_foundry(
        "language_understanding/winogrande", "sha256:ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7"
    ),
    "winograd_wsc": _of_llm_foundry(
        "language_understanding/winograd_wsc", "sha256:746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e"
    ),
    "piqa": _of_llm_foundry(
        "commonsense_reasoning/piqa", "sha256:d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0"
    ),
    "openbookqa": _of_llm_foundry(
        "commonsense_reasoning/openbook_qa", "sha256:adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09"
    ),
    "copa": _of_llm_foundry(
        "commonsense_reasoning/copa", "sha256:595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846"
    ),
    "boolq": _of_llm_foundry(
        "reading_comprehension/boolq", "sha256:454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8"
    ),
    "pubmedqa": _of_llm_foundry(
        "reading_comprehension/pubmed_qa_labeled",
        "sha256:60b94cdc8f507371366e1c28dfd0b86429da691ca0acc9dc83c9be6975ef0b41",
    ),
    "mathqa": _of_llm_foundry(
        "symbolic_problem_solving/math_qa", "sha256:743566d6e9925eb5bfc215ee7af8aaad58c2e821a637438aba7b9b30acdf6e50"
    ),
    "arc_easy": _of_llm_foundry(
        "world_knowledge/arc_easy", "sha256:d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5"
    ),
    "arc_challenge": _of_llm_foundry(
        "world_knowledge/arc_challenge", "sha256:1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636"
    ),
    "mmlu": _of_llm_foundry("world_knowledge/mmlu", "git:4466b2dfb2a13d00a33f4d1b7ffc5d06a4c9b34f"),
}


def fetch_tasks(files: Mapping[str, str], folder: str, show: Callable[[str, int, int], None]) -> Iterator[str]:
    """Downloads the files of tasks that are not there yet; yields a line about each file that is there.

    Args:
        files: the path of each task's file below the folder, by the name of the task.
        folder: a local folder.
        show: is told of a file how many bytes are there, and of how many; 0: unknown.

    Raises:
        UserError: a file cannot be fetched, or is another one than the published one; the others are fetched first.
    """
    if not is_local(folder):
        raise UserError(f"eval_tasks_dir = {folder}: is in a bucket; fetch into a local folder, and copy it there")
    published = {name: _published(name) for name in files}
    problems: list[UserError] = []
    with _alone(folder):
        for name, file in files.items():
            path = os.path.join(folder, file)
            try:
                yield _fetch(published[name], path, lambda there, of, file=file: show(file, there, of))
            except UnreachableError as error:
                raise UserError("\n".join(map(str, [*problems, _by_hand(error, published, files, folder)]))) from None
            except UserError as error:
                problems.append(error)
    if problems:
        raise UserError("\n".join(map(str, problems)))


def _published(name: str) -> PublishedFile:
    if name not in PUBLISHED:
        remedy = did_you_mean(name, PUBLISHED, f"the published ones are {', '.join(PUBLISHED)}")
        raise UserError(f"--fetch_tasks {name}: no file of this task can be fetched; {remedy}")
    return PUBLISHED[name]


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Keeps other processes from fetching into the same folder."""
    path = os.path.join(folder, LOCK)
    with locked(path, f"{folder}: another process is fetching tasks into it", "wait for it"):
        try:
            yield
        finally:
            os.remove(path)


def _fetch(published: PublishedFile, path: str, show: Callable[[int, int], None]) -> str:
    if not os.path.exists(path):
        download(published.url, path, published.checksum, show)
        return f"{path}: fetched"
    if has_checksum(path, published.checksum):
        return f"{path}: is there already"
    raise DataError(f"{path}: is not the published file, and was left as it is; move it away to fetch that one")


def _by_hand(
    error: UnreachableError, published: Mapping[str, PublishedFile], files: Mapping[str, str], folder: str
) -> str:
    """Returns a line that says where to put the files that are not there."""
    paths = {name: os.path.join(folder, file) for name, file in files.items()}
    missing: Iterable[str] = (
        f"{published[name].url} at {path}" for name, path in paths.items() if not os.path.exists(path)
    )
    return f"{error}; get the files where there is a network, and put {', '.join(missing)}"
