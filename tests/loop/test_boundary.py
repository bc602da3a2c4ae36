"""Where ranks meet, as threads on one store; and the files that they write side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from srlm_fast.loop.boundary import Boundary, RankEndedError
from srlm_fast.loop.part_files import NoRows, join_parts, part_of, parts_of
from srlm_fast.records import read_jsonl, write_jsonl


def never() -> bool:
    return False


def meeting(*work: Callable[[Boundary], object]) -> list[str]:
    """How each rank's work with its boundaries ends."""
    store, ends = dist.HashStore(), [""] * len(work)

    def run(rank: int) -> None:
        try:
            work[rank](Boundary(store, rank, len(work)))
            ends[rank] = "went on"
        except KeyboardInterrupt:
            ends[rank] = "stopped"
        except RankEndedError:
            ends[rank] = "told"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a rank waits for one that has left"
    return ends


def passing(times: int, asked: Callable[[], bool] = never) -> Callable[[Boundary], None]:
    def work(boundary: Boundary) -> None:
        for _ in range(times):
            boundary.meet(asked)

    return work


def test_all_go_on_together():
    assert meeting(passing(20), passing(20), passing(20)) == ["went on"] * 3


def test_who_is_asked_before_it_comes_stops_all():
    assert meeting(passing(2), passing(2, lambda: True), passing(2)) == ["stopped"] * 3


def test_who_is_asked_while_it_waits_stops_those_that_come_later():
    here = threading.Event()

    def waiting(boundary: Boundary) -> None:
        asked = [False, True]  # not yet when it arrives

        def ask() -> bool:
            here.set()
            return asked.pop(0) if len(asked) > 1 else asked[0]

        boundary.meet(ask)

    def late(boundary: Boundary) -> None:
        here.wait(20)
        while boundary.verdict() is None:
            pass
        boundary.meet(never)

    assert meeting(waiting, late) == ["stopped", "stopped"]


def test_who_leaves_between_boundaries_is_not_waited_for():
    def leaving(boundary: Boundary) -> None:
        boundary.meet(never)
        boundary.leave()

    assert meeting(leaving, passing(2)) == ["stopped", "stopped"]


def test_a_boundary_that_all_have_passed_stays_passed():
    """Whoever has gone on cannot be called back; the next boundary stops all."""
    gone = threading.Event()

    def first(boundary: Boundary) -> None:
        boundary.meet(never)
        gone.set()
        boundary.meet(never)

    def second(boundary: Boundary) -> None:
        boundary.meet(gone.is_set)
        gone.wait(20)
        boundary.meet(gone.is_set)

    assert meeting(first, second) == ["stopped", "stopped"]


def test_the_first_to_end_tells_and_the_others_know():
    said: dict[int, bool] = {}

    def failing(boundary: Boundary) -> None:
        said[boundary.rank] = boundary.tell(2)
        boundary.leave()

    def waiting(boundary: Boundary) -> None:
        try:
            boundary.meet(never)
        finally:
            assert boundary.told() == 2
            said[boundary.rank] = boundary.tell(1)

    assert meeting(failing, waiting) == ["told", "told"]
    assert said == {0: True, 1: False}


def test_parting_ends_when_all_are_there_or_time_is_up():
    assert meeting(lambda b: b.part(20), lambda b: b.part(20)) == ["went on"] * 2
    assert meeting(lambda b: b.part(0.1), passing(0)) == ["went on"] * 2


def row(prompt: str, index: int) -> dict[str, object]:
    return {"prompt_id": prompt, "index": index}


def test_parts_become_one_file_in_the_order_of_the_prompts(tmp_path: Path):
    path = tmp_path / "candidates.jsonl"
    write_jsonl(path, [row("c", 0), row("c", 1)])
    write_jsonl(part_of(path, 2), [row("a", 0)])
    write_jsonl(part_of(path, 10), [row("b", 1), row("b", 0)])
    assert [part.name for part in parts_of(path)] == ["candidates.2.jsonl", "candidates.10.jsonl"]
    join_parts(path, ["a", "b", "c"])
    assert read_jsonl(path) == [row("a", 0), row("b", 1), row("b", 0), row("c", 0), row("c", 1)]
    assert not parts_of(path)


def test_joining_again_after_a_kill_doubles_nothing_and_drops_torn_lines(tmp_path: Path):
    path, part = tmp_path / "judgements.jsonl", tmp_path / "judgements.1.jsonl"
    write_jsonl(part, [row("a", 0)])
    join_parts(path)  # no file yet
    part.write_text(path.read_text() + '{"prompt_id": "b", "ind')
    join_parts(path)
    assert read_jsonl(path) == [row("a", 0)] and not parts_of(path)


def test_other_files_are_no_parts(tmp_path: Path):
    path = tmp_path / "evaluation.jsonl"
    for name in ("evaluation_judged.jsonl", "evaluation.x.jsonl", "my.evaluation.1.jsonl"):
        write_jsonl(tmp_path / name, [row("a", 0)])
    assert not parts_of(path) and part_of(path, 0) == path
    with NoRows() as nowhere:
        nowhere.write(row("a", 0))
    join_parts(path)
    assert not path.exists()


def test_the_first_verdict_holds():
    boundary = Boundary(dist.HashStore(), 0, 2)
    assert boundary.verdict() is None
    assert boundary.put("stop") == boundary.put("go") == boundary.verdict() == "stop"
