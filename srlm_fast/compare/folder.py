"""The folder of a comparison: whose it is, by what its rows depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast.judge_options import judging
from srlm_fast.options import JUDGES
from srlm_fast.provenance import refuse_other
from srlm_fast.records import dump_row
from srlm_fast.run_folder import CONFIG_FILE, read_json, write_config
from srlm_fast.run_models import ModelAt

if TYPE_CHECKING:
    from srlm_fast.loop.contest import Terms
    from srlm_fast.report.display import Display

KEY = "comparison"  # of `config.json`


def take_folder(out: Path, terms: Terms, display: Display) -> None:
    """Refuse the folder of another comparison; write down whose a new one is."""
    from srlm_fast.config import versions

    wanted = settings(terms)
    found = read_json(out / CONFIG_FILE).get(KEY)
    if found is None or not any(out.glob("*.jsonl")):
        write_config(out, wanted, versions(), KEY)
        display.note(f"writing to {out}")
        return
    refuse_other(f"--out {out}: holds a comparison made", found, wanted, "folder")
    display.note(f"going on in {out}")


def settings(terms: Terms) -> dict[str, Any]:
    """What the rows of a folder depend on, by the option that sets it."""
    from srlm_fast.loop.alone import default_rubric
    from srlm_fast.loop.material import rubric_of

    config, answers = terms.config, terms.sampling
    rows = "".join(dump_row(prompt) for prompt in terms.prompts)
    found = {
        "A": identity("A", terms.models["a"]),
        "B": identity("B", terms.models["b"]),
        "--seed": config.seed,
        "--limit": terms.limit,
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
    return found | {"--rubric": f"{rubric.version} {rubric.digest}", **judging(config)}


def identity(option: str, at: ModelAt) -> str:
    """A name with a fingerprint of what lies there."""
    from srlm_fast.config import model_fingerprint
    from srlm_fast.model import find_folder

    return f"{at.folder_or_name} {model_fingerprint(option, find_folder(at.folder_or_name))[:16]}"
