"""Downloads the published files of tasks and verifies them.

Most are those of llm-foundry (https://github.com/mosaicml/llm-foundry, Apache-2.0), the others of Hugging Face's hub.
Each is taken at one commit.
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
from tasks.table import TASKS

LOCK = ".fetching"
LLM_FOUNDRY = (
    "https://raw.githubusercontent.com/mosaicml/llm-foundry/8c8dd48f72168c5d51e2f7b151595892a8fba43d"
    "/scripts/eval/local_data"
)
HUB = "https://huggingface.co/datasets"


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
    "mathqa": _of_llm_foundry(
        "symbolic_problem_solving/math_qa", "sha256:743566d6e9925eb5bfc215ee7af8aaad58c2e821a637438aba7b9b30acdf6e50"
    ),
    "arc_easy": _of_llm_foundry(
        "world_knowledge/arc_easy", "sha256:d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5"
    ),
    "arc_challenge": _of_llm_foundry(
        "world_knowledge/arc_challenge", "sha256:1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636"
    ),
    "sciq": PublishedFile(
        f"{HUB}/allenai/sciq/resolve/2c94ad3e1aafab77146f384e23536f97a4849815/data/test-00000-of-00001.parquet",
        "sha256:3a719356a29b127fc54ef3c7f51a034db4bd105d5717215e8c85d2aa58d60667",
    ),
    "mmlu": PublishedFile(
        f"{HUB}/cais/mmlu/resolve/c30699e8356da336a370243923dbaf21066bb9fe/all/test-00000-of-00001.parquet",
        "sha256:74a41822ce7d3def56e1682f958469c04642a5336a5ce912fa375fdb90fb25d7",
    ),
    "wikitext": PublishedFile(
        f"{HUB}/EleutherAI/wikitext_document_level/resolve/647234772b9554e208af6c826f23b99e3cac88c8"
        "/wikitext-2-raw-v1/wikitext-2-raw-v1-test.parquet",
        "sha256:e7fc7d4c385d027e0360f7eb320866df61adb68f385986e5c7f4f3911d62f4eb",
    ),
}


def fetch_tasks(names: Iterable[str], folder: str, show: Callable[[str, int, int], None]) -> Iterator[str]:
    """Downloads the files of tasks that are not there yet; yields a line about each file that is there.

    Args:
        names: of tasks.
        folder: a local folder.
        show: is told of a file how many bytes are there, and of how many; 0: unknown.

    Raises:
        UserError: a file cannot be fetched, or is another one than the published one; the others are fetched first.
    """
    if not is_local(folder):
        raise UserError(f"eval_tasks_dir = {folder}: is in a bucket; fetch into a local folder, and copy it there")
    files = {_path_of(name, folder): _published(name) for name in names}
    problems: list[UserError] = []
    with _alone(folder):
        for path, published in files.items():
            try:
                yield _fetch(published, path, lambda there, of, path=path: show(path, there, of))
            except UnreachableError as error:
                raise UserError("\n".join(map(str, [*problems, _by_hand(error, files)]))) from None
            except UserError as error:
                problems.append(error)
    if problems:
        raise UserError("\n".join(map(str, problems)))


def _published(name: str) -> PublishedFile:
    if name not in PUBLISHED:
        remedy = did_you_mean(name, PUBLISHED, f"the published ones are {', '.join(PUBLISHED)}")
        raise UserError(f"--fetch_tasks {name}: no file of this task can be fetched; {remedy}")
    return PUBLISHED[name]


def _path_of(name: str, folder: str) -> str:
    """Returns where `find_file` finds the published file of a task."""
    suffix = os.path.splitext(_published(name).url)[1]
    return os.path.join(folder, os.path.splitext(TASKS[name].file)[0] + suffix)


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


def _by_hand(error: UnreachableError, files: Mapping[str, PublishedFile]) -> str:
    """Returns a line that says where to put the files that are not there."""
    missing = (f"{published.url} at {path}" for path, published in files.items() if not os.path.exists(path))
    return f"{error}; get the files where there is a network, and put {', '.join(missing)}"
