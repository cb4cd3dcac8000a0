"""Whether a run may be deleted, to begin it anew."""

from __future__ import annotations

from collections.abc import Callable

from configs.errors import UserError
from configs.schema import RunConfig
from runtime.run import directory as run_directory


def confirm_delete(config: RunConfig, confirm: Callable[[str], bool]) -> bool:
    """Whether there is no run at `model_path`, or `confirm` says that it may be deleted.

    Raises:
        UserError: what is there is no run.
    """
    path = config.model_path
    run_directory.check_path(path)
    if run_directory.is_empty(path):
        return True
    if not run_directory.is_run(path):
        raise UserError(
            f"--new: model_path = {path}: holds no run, so it is not deleted; delete it yourself, or give another "
            "model_path"
        )
    return confirm(f"Delete the run in {path}?")
