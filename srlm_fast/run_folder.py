"""The run folder as a place: whose it is, whether it can be used, and its lock.

Standard library only, so that a wrong `--out` is told before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, read_object, write_json_atomic

CONFIG_FILE = "config.json"
STATE_FILE = "state.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"


def check_out(folder: Path, key: str = "run") -> None:
    """Raise InputError unless `folder` is a run folder, is empty, or can be made. key: of what else
    than a run, as its `config.json` has it.
    """
    check_place(folder)
    if folder.exists() and not is_run_folder(folder, key) and not is_blank(folder):
        if key == "run" and (folder / STATE_FILE).is_file():
            raise InputError(
                f"--out {folder}: found a run whose {CONFIG_FILE} is missing or cannot be read; "
                "restore it, or give another folder"
            )
        raise InputError(
            f"--out {folder}: found files that are not of a {key}, wanted a new or empty folder, "
            f"or one that an earlier {key} made"
        )


def check_place(folder: Path) -> None:
    """Raise InputError unless `folder` is one that can be written to, or can be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        kind = "a file" if existing == folder else f"inside {existing}, which is a file"
        raise InputError(f"--out {folder}: found {kind}, wanted a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: {existing} is not writable, wanted a writable folder")


def check_file(option: str, path: str | Path) -> None:
    """Raise InputError unless `path` can be a file to write."""
    place = Path(path).absolute()
    if place.is_dir():
        raise InputError(f"{option} {path}: found a folder, wanted a file to write")
    if place.exists() and not place.is_file():
        raise InputError(f"{option} {path}: found a device or a pipe, wanted a file to write")
    if not place.parent.is_dir():
        raise InputError(f"{option} {path}: its folder is not there, wanted a file to write")
    try:
        tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}, wanted a file to write") from None


def is_run_folder(folder: Path, key: str = "run") -> bool:
    return (folder / CONFIG_FILE).is_file() and key in read_json(folder / CONFIG_FILE)


def is_started(folder: Path) -> bool:
    """True once a stage has left something: from then on the folder belongs to its options."""
    return any(path.is_file() for path in folder.glob("m*/**/*"))


def is_blank(folder: Path) -> bool:
    """True when nothing but a lock or a torn write is there."""
    return all(path.name.startswith(".") for path in folder.iterdir())


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, or {} when there is none that can be read."""
    try:
        return read_object(path)
    except (OSError, InputError):
        return {}


def is_finished(folder: Path) -> bool:
    return bool(read_json(folder / SUMMARY_FILE).get("finished"))


def earlier_runs(root: Path, model: str) -> list[Path]:
    """Run folders under the default names of this model, the latest first."""
    folders = [path for path in root.glob(f"{slug(model)}-*") if is_run_folder(path)]
    return sorted(folders, key=lambda path: (path / CONFIG_FILE).stat().st_mtime, reverse=True)


def forget_stop(folder: Path) -> None:
    """A run that stopped by itself goes on: its summary, which says so, no longer holds. The report
    has the figures from the state.
    """
    if read_json(folder / SUMMARY_FILE).get("stopped"):
        (folder / SUMMARY_FILE).unlink()


def new_folder(root: Path, model: str, today: datetime.date) -> Path:
    """`root/<model>-<date>`, with a number behind it when that is taken."""
    first = root / f"{slug(model)}-{today.isoformat()}"
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


def slug(model: str) -> str:
    """The last part of a folder or hub id, safe as a file name."""
    name = re.sub(r"[^\w.-]+", "-", Path(os.path.abspath(model)).name).strip("-.")
    return name[:60] or "model"


class FirstStart:
    """The first start of a run in a folder, which leaves nothing there when it is refused.

    To be made before anything is written, the folder's lock included.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_first = folder, not (folder.is_dir() and is_started(folder))
        self.kept = set(folder.iterdir()) if folder.is_dir() else set()
        self.made = [path for path in (folder, *folder.parents) if not path.exists()]

    def undo(self) -> None:
        """Take back what this start has written, unless a stage is finished, and the folders that
        it made. The lock goes last: until then no other run is here.
        """
        if not self.is_first or read_json(self.folder / STATE_FILE).get("stages"):
            return
        left = [path for path in self.folder.iterdir() if path not in self.kept]
        for path in sorted(left, key=lambda path: path.name == LOCK_FILE):
            remove(path)
        for path in self.made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                path.rmdir()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Lock:
    """Holds the run folder for this process. The kernel lets go of it however the process ends."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # of a file system such as /proc
            raise InputError(
                f"--out {folder}: {error.strerror}, wanted a folder that can be made"
            ) from None
        self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise InputError(
                f"--out {folder}: process {holder} is writing this run; wait for it, stop it, "
                "or give another folder"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def write_config(
    folder: Path, made: dict[str, Any], versions: dict[str, str], key: str = "run"
) -> None:
    """`config.json`: everything that made the run."""
    write_json_atomic(folder / CONFIG_FILE, {key: made, "versions": versions})
