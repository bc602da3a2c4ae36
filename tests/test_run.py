"""The command line: every mistake is one line and exit 2, and the other ways to end have theirs."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srlm_fast import loop, run, run_folder
from srlm_fast.records import InputError
from tests.report.folders import summary

ROOT = Path(run.__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default folders must not land in the repository, and nothing may be fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """complaint(*argv) -> the one line on stderr of a command that ends with status 2."""

    def complain(*argv: str, status: int = run.UNUSABLE) -> str:
        capsys.readouterr()
        assert run.main(argv) == status
        shown, written = capsys.readouterr()
        assert status != run.UNUSABLE or "writing to" not in shown
        assert written.startswith("srlm_fast: "), written
        assert written.count("\n") == 1, written
        assert "Traceback" not in written
        return written

    return complain


class FakeLoop:
    """Stands in for the loop: leaves a row, then ends as it is told."""

    def __init__(self, end: Callable[..., Any]) -> None:
        self.end, self.outs = end, []

    def __call__(
        self, config: Any, display: Any, stop: Callable[[], bool], ranks: Any, on_model: Any
    ) -> dict[str, Any]:
        out = Path(config.out)
        self.outs.append(out)
        (out / "m1").mkdir(exist_ok=True)
        (out / "m1" / "sft.jsonl").write_text("{}\n")
        return self.end(out, stop)


def finish(out: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    (out / "summary.json").write_text(json.dumps(summary()))
    return summary()


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(out: Path, stop: Callable[[], bool]) -> dict[str, Any]:
        raise error

    return fail


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeLoop]:
    """fake(end) puts a loop in place that ends so."""

    def put(end: Callable[..., Any]) -> FakeLoop:
        made = FakeLoop(end)
        monkeypatch.setattr(loop, "run", made)
        return made

    return put


def test_help_answers_in_under_a_second_and_names_every_option():
    # Processor time of the child, so that a busy machine does not make it fail.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "srlm_fast.run", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    for name in ("--model", "--out", "--prompts", "--judge", "--recipe", "--plan", "--top-p"):
        assert name in done.stdout
    assert "(default: 1024; tiny: 512)" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


MISTAKES = {
    "misspelt option": (
        ["--candidate", "4"],
        "--candidate: no such option; did you mean --candidates?",
    ),
    "cut short": (["--cand", "4"], "did you mean --candidates?"),
    "misspelt with a value": (["--temprature=1"], "--temperature"),
    "far from any option": (["--zzzzzzzzzz"], "--help lists all"),
    "no option at all": (["llama"], "--model llama"),
    "not a number": (["--candidates", "many"], "--candidates: found 'many', wanted a whole number"),
    "not whole": (["--iterations", "1.5"], "--iterations: found '1.5'"),
    "too few": (
        ["--candidates", "1"],
        "--candidates: found 1, wanted a whole number of at least 2",
    ),
    "negative": (["--temperature", "-1"], "--temperature: found -1.0"),
    "not finite": (["--temperature", "nan"], "--temperature: found nan"),
    "infinite": (["--temperature", "inf"], "--temperature: found inf"),
    "top-p of none": (["--top-p", "0"], "--top-p: found 0.0, wanted a number above 0, at most 1"),
    "top-p over one": (["--top-p", "1.01"], "--top-p: found 1.01"),
    "no tokens": (["--max-tokens", "0"], "--max-tokens: found 0"),
    "negative rounds": (["--iterations", "-1"], "--iterations: found -1"),
    "negative seed": (["--seed", "-3"], "--seed: found -3"),
    "seed of words": (["--seed", "x"], "--seed: found 'x'"),
    "unknown judge": (
        ["--judge", "guess"],
        "--judge: found 'guess', wanted sampled, expected or direct",
    ),
    "unknown reward": (["--reward", "mine"], "--reward: found 'mine', wanted self, frozen"),
    "unknown recipe": (["--recipe", "papr"], "--recipe: found 'papr'"),
    "unknown dtype": (["--dtype", "int3"], "--dtype: found 'int3', wanted float32, bfloat16"),
    "value missing": (["--model"], "--model: expected one argument"),
    "empty model": (["--model", " "], "--model: found ' '"),
    "empty out": (["--out", ""], "--out: found ''"),
    "devices without a plan": (["--devices", "H100-80"], "--devices: found without --plan"),
    "unknown card": (["--plan", "--devices", "8xH10-80"], "did you mean H100-80?"),
    "no devices": (["--plan", "--devices", "0xH100-80"], "--devices: found '0xH100-80'"),
    "no such device": (
        ["--device", "cuda:77"],
        "--device: 'cuda:77' is not there; this machine has cpu",
    ),
    "no device": (["--device", "toaster"], "'toaster' is not there; this machine has cpu"),
    "no such model": (["--model", "./nowhere"], "./nowhere: no such folder"),
    "tiny misspelt": (["--model", "tinny"], "--model tinny: no such folder; did you mean tiny?"),
    "out nowhere": (["--out", "/proc/x"], "--out /proc/x: No such file or directory, wanted"),
    "shards of one": (["--shard", "yes"], "--shard: found 'yes' without ranks"),
    "planned prompt model misspelt": (
        ["--plan", "--model", "llama-3-8b", "--prompt-model", "llama-3-9b"],
        "--prompt-model llama-3-9b: no such folder; did you mean llama-3-8b?",
    ),
    "model misspelt": (["--model", "llama-3-8"], "did you mean llama-3-8b?"),
    "gold of a foreign world": (
        ["--model", "llama-3-8b", "--reward", "gold"],
        "--reward: found 'gold'",
    ),
    "greedy candidates": (["--temperature", "0"], "--temperature: found 0"),
    "prompts missing": (["--prompts", "none.jsonl"], "--prompts"),
}


@pytest.mark.parametrize(("argv", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_options(complaint, argv: list[str], said: str):
    assert said in complaint(*argv)
    assert list(Path().glob("runs/*")) == []


FILES = {
    "folder": (None, "found a folder, wanted a file"),
    "empty": (b"", "prompts.jsonl"),
    "not JSON": (b'{"prompt": "a"}\nnope\n', "line 2"),
    "wrong field": (b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: field 'text'"),
    "not a string": (b'{"prompt": 3}\n', "line 1: field 'prompt'"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}\n', "prompts.jsonl"),
    "not an object": (b'{"prompt": "a"}\n["a"]\n', "line 2"),
}


@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES)
def test_mistakes_in_the_prompts_file(complaint, content: bytes | None, said: str):
    path = Path("prompts.jsonl")
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert said in complaint("--prompts", str(path), "--out", "out/of/runs")
    assert not Path("out").exists()


def test_mistakes_in_files_of_other_forms(complaint, tmp_path: Path):
    pairs, broken = tmp_path / "pairs.jsonl", tmp_path / "chat.jinja"
    pairs.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    broken.write_text("{% for m in messages %}\n{% endif %}")
    said = complaint("--ift", str(pairs), "--chat-template", str(broken))
    assert f"--chat-template {broken} line 2: " in said
    pairs.write_text('{"message_tree_id": "t", "prompt": {}}\n')
    said = complaint("--ift", str(pairs))
    assert f"--ift {pairs} line 1: found Open Assistant trees, wanted the seeds that" in said
    assert not Path("runs").exists()


def test_a_refused_first_start_leaves_what_was_there(complaint, fake):
    """With its first rows, too: they are of files that another command will have changed."""
    Path("out").mkdir()
    fake(failing(InputError("--ift: found 3 rows, all too long")))
    complaint("--out", "out")
    assert not list(Path("out").iterdir())
    fake(failing(OSError(errno.ENOSPC, "No space left on device")))
    complaint("--out", "out")  # nobody's mistake: the same command goes on
    assert Path("out/m1/sft.jsonl").is_file()
    before = Path("out/config.json").read_bytes()
    fake(failing(InputError("lost")))
    complaint("--out", "out")
    assert Path("out/m1/sft.jsonl").is_file() and Path("out/config.json").read_bytes() == before


def test_a_finished_stage_outlives_a_refusal(complaint, fake):
    def refuse(out: Path, stop: Callable[[], bool]) -> dict[str, Any]:
        (out / "state.json").write_text('{"stages": {"m1/train": {}}}')
        raise InputError("--reward-pairs: found 3 pairs, all too long")

    fake(refuse)
    complaint("--out", "out")
    assert Path("out/config.json").is_file() and Path("out/m1/sft.jsonl").is_file()


def test_a_corrected_file_may_go_into_the_same_folder(complaint, fake):
    path = Path("prompts.jsonl")
    path.write_text("nope\n")
    complaint("--prompts", str(path), "--out", "out")
    path.write_text('{"prompt": "a"}\n')
    fake(finish)
    assert run.main(["--prompts", str(path), "--out", "out"]) == run.DONE


def test_out_is_a_file(complaint):
    Path("out").write_text("x")
    assert "--out out: found a file, wanted a folder" in complaint("--out", "out")
    assert "is a file" in complaint("--out", "out/below")


def test_out_holds_something_else(complaint):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("x")
    assert "not of a run" in complaint("--out", "out")
    Path("out/config.json").write_text('{"model_type": "llama"}')
    assert "not of a run" in complaint("--out", "out")


def test_out_is_not_writable(complaint, monkeypatch: pytest.MonkeyPatch):
    Path("out").mkdir()
    # Root may write anywhere, so the system's answer is given by hand.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is not writable" in complaint("--out", "out")


def test_what_stopped_before_is_forgotten_when_it_goes_on(tmp_path):
    summary = tmp_path / "summary.json"
    summary.write_text('{"finished": false, "stopped": {"reason": "M2: no pair"}}')
    run_folder.forget_stop(tmp_path)
    assert not summary.exists()
    summary.write_text('{"finished": true}')
    run_folder.forget_stop(tmp_path)
    assert run_folder.is_finished(tmp_path)


def test_out_belongs_to_another_run(complaint, fake):
    Path("p.jsonl").write_text('{"prompt": "a"}\n')
    fake(finish)
    given = ["--prompts", "p.jsonl", "--out", "out"]
    assert run.main(given) == run.DONE
    said = complaint(*given, "--candidates", "6")
    assert "with --candidates 4, found 6; wanted the same options" in said
    assert "--seed 0, found 7" in complaint(*given, "--seed", "7")
    Path("p.jsonl").write_text('{"prompt": "b"}\n')
    assert "with --prompts of other content; wanted" in complaint(*given)
    said = complaint(*given, "--recipe", "paper")
    assert "--recipe default" in said and "num_ift" not in said


def test_two_runs_cannot_write_one_folder(complaint, fake):
    fake(finish)
    with run_folder.Lock(Path("out")):
        assert f"process {os.getpid()} is writing" in complaint("--out", "out")
    assert run.main(["--out", "out"]) == run.DONE


HOLD = """
import sys, time
from pathlib import Path
from srlm_fast.run_folder import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {holder.pid} is writing"):
        run_folder.Lock(tmp_path / "out")
    holder.kill()
    holder.communicate()
    run_folder.Lock(tmp_path / "out").release()


def test_done_shows_the_table_and_the_report(fake, capsys):
    fake(finish)
    assert run.main(["--out", "out"]) == run.DONE
    written = capsys.readouterr().out
    assert re.search(r"^M3 +3\.79", written, re.M)
    assert written.rstrip().endswith("out/report.html")
    assert Path("out/report.html").is_file()
    made = json.loads(Path("out/config.json").read_text())
    assert made["run"]["candidates"]["n"] == 4
    assert made["versions"].keys() >= {"srlm_fast", "python", "torch"}


def test_stopped_by_itself(complaint, fake):
    fake(failing(loop.StoppedError("M2: the round gave no pair to learn from")))
    said = complaint("--out", "out", status=run.STOPPED)
    assert "no pair to learn from; all rows are kept in out" in said
    assert Path("out/report.html").is_file()


def test_interrupted_at_a_safe_point(complaint, fake):
    def press(out: Path, stop: Callable[[], bool]) -> dict[str, Any]:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        raise KeyboardInterrupt

    fake(press)
    before = signal.getsignal(signal.SIGINT)
    said = complaint("--out", "out", status=run.INTERRUPTED)
    assert "kept in out: the same command goes on from there" in said
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_interrupt_stops_at_once(complaint, fake):
    def press_twice(out: Path, stop: Callable[[], bool]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on after the second interrupt")

    fake(press_twice)
    complaint("--out", "out", status=run.INTERRUPTED)


def wrapped_in_a_library() -> BaseException:
    return RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (wrapped_in_a_library(), "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "out/m1"), "out/m1: Permission denied"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
    ],
)
def test_the_machine_runs_out_of_something(complaint, fake, error: BaseException, said: str):
    fake(failing(error))
    written = complaint("--out", "out")
    assert said in written
    assert "the same command goes on from there" in written


def test_a_fault_of_ours_is_not_hidden(fake):
    fake(failing(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        run.main(["--out", "out"])


def test_a_fault_of_ours_ends_with_one():
    code = "import srlm_fast.run as r; r.command = lambda argv: 1 / 0; r.console()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == run.FAULT
    assert b"ZeroDivisionError" in done.stderr


def test_without_out_the_same_command_goes_on_and_another_starts_anew(fake):
    broken = fake(failing(KeyboardInterrupt()))
    assert run.main([]) == run.INTERRUPTED
    assert run.main(["--seed", "1"]) == run.INTERRUPTED
    assert run.main([]) == run.INTERRUPTED
    first, other, again = broken.outs
    assert re.fullmatch(r"runs/tiny-\d{4}-\d\d-\d\d", str(first))
    assert str(other) == f"{first}-2"
    assert again == first
    done = fake(finish)
    assert run.main([]) == run.DONE
    assert run.main([]) == run.DONE
    assert done.outs[0] == first
    assert str(done.outs[1]) == f"{first}-3"


def test_a_finished_folder_given_again_is_done_at_once(fake):
    fake(finish)
    assert run.main(["--out", "out"]) == run.DONE
    assert run.main(["--out", "out"]) == run.DONE


def test_a_reader_that_goes_away_is_no_fault():
    done = subprocess.run(
        f"{sys.executable} -m srlm_fast.run --plan | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
