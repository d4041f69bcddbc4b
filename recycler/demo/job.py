"""The demo's job file: an ordinary one, to read and to change."""

from __future__ import annotations

from pathlib import Path

from recycler.demo.skills import SKILLS

JOB = """\
# The demo's job. Change it and run it again: recycler run {folder}/job.yaml --dir another-run
version: 1
name: demo
pool:
  members: [pool/members/*]
  base: pool/base              # known, so weights act on deltas and their sum is searched too
suites: [demo]                 # eval_suites/demo.yaml: items in data/
objectives:
{objectives}
engine: {{name: transformers, dtype: bfloat16, workers: 1}}
budget: {{trials: {trials}}}
seed: {seed}
"""


def write_job(folder: Path, *, seed: int, trials: int) -> Path:
    """Write FOLDER/job.yaml, unless it is there with the same text, and return its path."""
    objectives = "\n".join(
        f"  - {{suite: demo, task: {skill}, metric: exact_match, direction: maximize}}"
        for skill in SKILLS
    )
    text = JOB.format(folder=folder.name, objectives=objectives, trials=trials, seed=seed)
    path = folder / "job.yaml"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path
