"""`python -m srlm_fast.compare A B --out FOLDER`: which of two models gives the better answers.

Both answer the same prompts, a judge says who wins each time, and the figures come with intervals,
length controlled beside raw. Exit status as `srlm_fast.run` has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast import run_folder
from srlm_fast.judge_command import drawn, refuse_other
from srlm_fast.options import JUDGES, OPTIONS, Option, one_of, real, text, whole
from srlm_fast.records import InputError, Prompt, dump_row, write_json_atomic
from srlm_fast.run import (
    DONE,
    INTERRUPTED,
    UNUSABLE,
    Parser,
    complain,
    end_of,
    parsed,
    resource_message,
    stop_on_interrupt,
)
from srlm_fast.run_models import ModelAt, resolve_model

if TYPE_CHECKING:
    from srlm_fast.config import Config
    from srlm_fast.loop.contest import Outcome, Terms
    from srlm_fast.report.display import Display

KEY = "comparison"  # of `config.json`
FIGURES_FILE = "comparison.json"
KINDS = ("pairwise", *JUDGES, "model", "gold")
MATCHES = ("all", "same")
# Files of a run that its held-out prompts come from.
HELD_OUT_OF = ("eval_prompts_file", "prompts_file", "ift_file", "eft_file")
RUBRIC_OPTIONS = (
    *("--rubric", "--judge-samples", "--judge-temperature", "--judge-max-tokens"),
    "--judge-stop",
)
TAKEN = (
    *("--temperature", "--top-p", "--max-tokens", *RUBRIC_OPTIONS),
    *("--seed", "--device", "--dtype", "--kv-gb"),
)
OWN = (
    Option(
        "--out",
        "out",
        text("a folder"),
        "FOLDER",
        "where rows go as they finish, and comparison.json; the same command goes on from there",
    ),
    Option(
        "--prompts",
        "prompts",
        text("the name of a file"),
        "FILE",
        "prompts to answer (default: those that the run of A and B holds out, its own answers to "
        "them included; for the tiny model those of its world)",
    ),
    Option("--limit", "limit", whole(1), "N", "prompts of them, drawn by the seed (default: all)"),
    Option(
        "--samples",
        "evaluation.samples",
        whole(1),
        "N",
        "answers of each model to a prompt (default: 1; those of the run, of tiny 4)",
    ),
    Option(
        "--match",
        "match",
        one_of(*MATCHES),
        "HOW",
        "of several answers: all of A's with all of B's, or same, the k-th with the k-th (default: "
        "all)",
    ),
    Option(
        "--judge",
        "judge",
        text("A, B, a folder, a hub id or a preset"),
        "JUDGE",
        "the model that judges: A, B, or any other (default: M1 of the run that both are of, else "
        "B)",
    ),
    Option(
        "--judge-kind",
        "judge_kind",
        one_of(*KINDS),
        "KIND",
        "pairwise: the judge compares two answers in both orders, a disagreement is a tie; "
        "sampled, expected, direct: it scores each by the rubric as --judge of a run does; model: "
        "JUDGE is a reward model; gold: the tiny world's program. Of all but pairwise equal scores "
        "are a tie, and order plays no part (default: pairwise; sampled with --rubric; for the "
        "tiny model gold, or sampled where --judge or --rubric is given)",
    ),
    Option(
        "--tie-within",
        "tie_within",
        real(0.0),
        "X",
        "scores no further apart than this are a tie (default: 0)",
    ),
)
DESCRIPTION = "Measures which of two models gives the better answers to the same prompts."


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m srlm_fast.compare",
        description=DESCRIPTION,
        allow_abbrev=False,
        usage="%(prog)s A B --out FOLDER [options]",
    )
    parser.extra_word = "wanted two models, then options only"
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(),
            metavar=name,
            help="a model of a run (runs/x/m3), a folder, a hub id or a preset",
        )
    for option in used_options():
        parser.add_argument(option.name, metavar=option.metavar, help=option.help)
    return parser


def used_options() -> tuple[Option, ...]:
    return (*OWN, *(option for option in OPTIONS if option.name in TAKEN))


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options as values, None where not given. Raises InputError naming the option."""
    arguments = parsed(make_parser(), argv, used_options())
    if arguments.out is None:
        raise InputError("--out: not given, wanted a folder for the answers and figures")
    run_folder.check_out(Path(arguments.out), KEY)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    arguments = read_options(argv)
    models = {side: resolve_model(getattr(arguments, side)) for side in ("a", "b")}
    # From here on torch is needed, which takes seconds to import.
    from srlm_fast.model import ModelError
    from srlm_fast.report.display import Display

    out, display = Path(arguments.out), Display(sys.stdout)
    try:
        terms = terms_of(arguments, models)
        with run_folder.Lock(out):
            take_folder(out, settings(terms, arguments), display)
            return contest(terms, out, display)
    except ModelError as error:
        raise InputError(str(error)) from error
    except InputError:
        raise
    except Exception as error:
        message = resource_message(error, out)
        if message is None:
            raise
        return complain(message, UNUSABLE)
    finally:
        display.close()


def contest(terms: Terms, out: Path, display: Display) -> int:
    """Answers, judgements, figures."""
    from srlm_fast.loop.contest import Contest
    from srlm_fast.report.compare_text import compare_text

    try:
        with stop_on_interrupt(display) as stop:
            outcome = Contest(terms, out, display, stop).run()
    except KeyboardInterrupt:
        display.close()
        kept = f"interrupted; everything finished is kept in {out}"
        return complain(f"{kept}: the same command goes on from there", INTERRUPTED)
    figures = figures_of(terms, outcome)
    write_json_atomic(out / FIGURES_FILE, figures)
    display.note(compare_text(figures))
    return DONE


# ------------------------------------------------------------------------------- what is compared


def terms_of(arguments: argparse.Namespace, models: dict[str, ModelAt]) -> Terms:
    """Raises InputError and ModelError for whatever cannot be compared so, before anything is
    written.
    """
    from srlm_fast.loop.contest import Terms
    from srlm_fast.loop.contest_judges import check_gold

    kind = chosen_kind(arguments, models)
    check_kind(arguments, kind)
    config = config_of(arguments, models, kind)
    prompts = prompts_of(arguments, models, config)
    if kind == "gold":
        check_gold(prompts)
    terms = Terms(
        models,
        chosen_judge(arguments, models, kind),
        kind,
        config,
        drawn(prompts, arguments.limit, config.seed),
        of_run=arguments.prompts is None and shared_run(models) is not None,
        match=arguments.match or MATCHES[0],
        tie_within=arguments.tie_within or 0.0,
    )
    check_models(terms)
    return terms


def shared_run(models: dict[str, ModelAt]) -> Path | None:
    """The run that both models are of."""
    runs = {at.run for at in models.values()}
    return runs.pop() if len(runs) == 1 else None


def of_tiny(at: ModelAt) -> bool:
    from srlm_fast.config import TINY

    return at.name == TINY or (at.run_config or {}).get("model") == TINY


def chosen_kind(arguments: argparse.Namespace, models: dict[str, ModelAt]) -> str:
    tiny = all(map(of_tiny, models.values()))
    if arguments.judge_kind is not None:
        return arguments.judge_kind
    if arguments.rubric is not None or (tiny and arguments.judge is not None):
        return "sampled"
    return "gold" if tiny else "pairwise"


def check_kind(arguments: argparse.Namespace, kind: str) -> None:
    """Refuse options that a kind of judge has no use for."""
    if kind == "gold" and arguments.judge is not None:
        raise InputError("--judge: found with --judge-kind gold, wanted none: a program judges")
    if kind == "model" and arguments.judge is None:
        raise InputError("--judge: not given, wanted the reward model of --judge-kind model")
    given = [name for name in RUBRIC_OPTIONS if getattr(arguments, name[2:].replace("-", "_"))]
    if given and kind not in JUDGES:
        raise InputError(
            f"{given[0]}: found with --judge-kind {kind}, wanted {', '.join(JUDGES[:-1])} or "
            f"{JUDGES[-1]}: no other asks with a rubric"
        )
    if arguments.judge_stop == "line" and kind != "sampled":
        raise InputError(
            f"--judge-stop: found 'line' with --judge-kind {kind}, wanted sampled: the others "
            "write no score line"
        )
    if arguments.tie_within and kind == "pairwise":
        raise InputError("--tie-within: found with --judge-kind pairwise, wanted one that scores")


def chosen_judge(
    arguments: argparse.Namespace, models: dict[str, ModelAt], kind: str
) -> ModelAt | None:
    if kind == "gold":
        return None
    if arguments.judge in ("A", "B"):
        return models[arguments.judge.lower()]
    if arguments.judge is not None:
        return resolve_model(arguments.judge)
    run = shared_run(models)
    return models["b"] if run is None else resolve_model(str(run / "m1"))


def config_of(arguments: argparse.Namespace, models: dict[str, ModelAt], kind: str) -> Config:
    """What the run of both models was made with, or the tiny model's or the default numbers; then
    the options. How answers are sampled and judged is all that counts of it.
    """
    from srlm_fast.config import Config, absolute, from_json, put_option, tiny

    if shared_run(models) is not None:
        config = from_json(models["a"].run_config or {})
    else:
        config = tiny() if all(map(of_tiny, models.values())) else Config()
    for option in used_options():
        value = getattr(arguments, option.key)
        if value is not None and (option.name in TAKEN or option.name == "--samples"):
            config = put_option(config, option, value)
    judge = config.judge
    if kind in JUDGES:
        stop = judge.stop if kind == "sampled" else "end"
        judge = dataclasses.replace(judge, mode=kind, stop=stop)
    return dataclasses.replace(config, judge=judge, rubric_file=absolute(config.rubric_file))


def prompts_of(
    arguments: argparse.Namespace, models: dict[str, ModelAt], config: Config
) -> list[Prompt]:
    """Those of the file, or those that are held out from both models. Raises InputError."""
    from srlm_fast.config import from_json
    from srlm_fast.data import read_prompts
    from srlm_fast.loop.material import gather

    if arguments.prompts is not None:
        try:
            prompts = read_prompts(arguments.prompts)
        except InputError as error:
            raise InputError(f"--prompts {error}") from None
        if not prompts:
            raise InputError(f"--prompts {arguments.prompts}: found no prompt, wanted some")
        return prompts
    run = shared_run(models)
    if run is None and not all(map(of_tiny, models.values())):
        raise InputError(
            "--prompts: not given, wanted a file of prompts: only models of one run have held-out "
            "prompts in common"
        )
    own = config if run is None else from_json(models["a"].run_config or {})
    check_unchanged(own)
    prompts = list(gather(own).held_out)
    if not prompts:
        raise InputError(f"--prompts: not given, and {run} holds no prompt out; wanted a file")
    return prompts


def check_unchanged(config: Config) -> None:
    """Refuse held-out prompts of a run whose files have changed since: they would be others."""
    from srlm_fast.config import fingerprint, option_at

    for name in HELD_OUT_OF:
        path, known = getattr(config, name), config.inputs.get(name)
        if path is not None and known is not None:
            if fingerprint(f"{option_at(name)} of the run:", path) != known:
                raise InputError(
                    f"--prompts: not given, and {path} ({option_at(name)} of the run) has changed "
                    "since; wanted a file of prompts"
                )


def check_models(terms: Terms) -> None:
    """Read the configurations, so that a wrong name or length is told before anything is done."""
    from srlm_fast.loop.alone import default_rubric
    from srlm_fast.loop.material import rubric_of
    from srlm_fast.model import find_folder
    from srlm_fast.model.reward_model import check_reward_folder
    from srlm_fast.plan import check_lengths, model_config

    longest = {at.folder_or_name: ["--max-tokens"] for at in terms.models.values()}
    if terms.kind == "model":
        check_reward_folder(find_folder(terms.judge_name))
    elif terms.judge is not None:
        asked = longest.setdefault(terms.judge_name, [])
        asked += ["--judge-max-tokens"] if terms.kind in ("sampled", "expected") else []
    if terms.kind in JUDGES:
        rubric_of(terms.config, default_rubric(terms.judge_name))
    for name, options in longest.items():
        config = dataclasses.replace(terms.config, model=name)
        check_lengths(config, model_config(name), options)


# ------------------------------------------------------------------------------- what is written


def settings(terms: Terms, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the rows of a folder depend on, by the option that sets it."""
    from srlm_fast.loop.alone import default_rubric
    from srlm_fast.loop.material import rubric_of

    config, answers, judge = terms.config, terms.sampling, terms.config.judge
    rows = "".join(dump_row(prompt) for prompt in terms.prompts)
    found = {
        "A": identity("A", terms.models["a"]),
        "B": identity("B", terms.models["b"]),
        "--seed": config.seed,
        "--prompts (their content)": hashlib.sha256(rows.encode()).hexdigest()[:16],
        "--samples": answers.n,
        "--temperature": answers.temperature,
        "--top-p": answers.top_p,
        "--max-tokens": answers.max_tokens,
        "--device": config.device,
        "--dtype": config.dtype,
        "--judge-kind": terms.kind,
        "--judge": None if terms.judge is None else identity("--judge", terms.judge),
    }
    if terms.kind not in JUDGES:
        return found
    rubric = rubric_of(config, default_rubric(terms.judge_name))
    return found | {
        "--rubric": f"{rubric.version} {rubric.digest}",
        "--judge-stop": judge.stop,
        "--judge-samples": judge.sampling.n,
        "--judge-temperature": judge.sampling.temperature,
        "--judge-max-tokens": judge.sampling.max_tokens,
    }


def identity(option: str, at: ModelAt) -> str:
    """A name with a fingerprint of what lies there."""
    from srlm_fast.config import model_fingerprint
    from srlm_fast.model import find_folder

    return f"{at.folder_or_name} {model_fingerprint(option, find_folder(at.folder_or_name))[:16]}"


def take_folder(out: Path, wanted: dict[str, Any], display: Display) -> None:
    """Refuse the folder of another comparison; write down whose a new one is."""
    from srlm_fast.config import versions

    found = run_folder.read_json(out / run_folder.CONFIG_FILE).get(KEY)
    if found is None or not any(out.glob("*.jsonl")):
        run_folder.write_config(out, wanted, versions(), KEY)
        display.note(f"writing to {out}")
        return
    refuse_other(f"--out {out}: holds a comparison made", found, wanted, "folder")
    display.note(f"going on in {out}")


def figures_of(terms: Terms, outcome: Outcome) -> dict[str, Any]:
    """`comparison.json`: all figures, and what made them."""
    from srlm_fast.config import versions
    from srlm_fast.eval import win_rate
    from srlm_fast.report.compare_text import judge_sentence

    made = {
        **{side: provenance(at) for side, at in terms.models.items()},
        "prompts": len(terms.prompts),
        "samples": terms.sampling.n,
        "match": terms.match,
        "tie_within": terms.tie_within,
        "judge": judge_of(terms, outcome),
        "figures": win_rate(outcome.duels),
        "judgements": outcome.judgements,
        **outcome.audits,
        "too_long": outcome.too_long,
        "unanswered": outcome.unanswered,
        "borrowed": outcome.borrowed,
        "sampling": dataclasses.asdict(terms.sampling),
        "seed": terms.config.seed,
        "device": terms.config.device,
        "dtype": terms.config.dtype,
        "versions": versions(),
    }
    return made | {"judge_is": judge_sentence(made)}


def judge_of(terms: Terms, outcome: Outcome) -> dict[str, Any]:
    """The judge's provenance. is: the sides that it is itself."""
    name = terms.judge_name
    own = provenance(terms.judge) if terms.judge is not None else {}
    made = {"kind": terms.kind, **own, "asked_with": outcome.asked_with}
    made["is"] = [side for side, at in terms.models.items() if at.folder_or_name == name]
    if terms.kind in JUDGES:
        made["stop"] = terms.config.judge.stop
        made["sampling"] = dataclasses.asdict(terms.config.judge.sampling)
    return made


def provenance(at: ModelAt) -> dict[str, Any]:
    """weights: a hash of all that the folder's safetensors files hold."""
    from srlm_fast.loop.state import weights_hash
    from srlm_fast.model import find_folder

    run = None if at.run is None else str(at.run)
    weights = weights_hash(find_folder(at.folder_or_name))
    return {"name": at.name, "model": at.folder_or_name, "run": run, "weights": weights}


if __name__ == "__main__":
    sys.exit(main())
