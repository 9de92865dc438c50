"""From answers of simple vision to tables: how often each question was answered as asked, and what else was seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

QUESTIONS = ("color", "direction", "shape", "background")
NOTHING = "nothing"
"""What a table calls an answer that could not be given."""
GHOSTS = 0.25
"""Share of the frames with a second sizeable piece from which a clip has ghosts."""
Answer = dict[str, Any]
"""What was `wanted` and what was `seen`, by question; `seen` also has `pieces`."""
Table = dict[str, dict[str, int]]
"""How often each was seen, by what was wanted."""


def judge(answers: Sequence[Answer]) -> dict[str, Any]:
    """Share of right answers to each question, the confusion tables, and ghosts.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("there are no answers to judge")
    tables = {question: confusion(answers, question) for question in QUESTIONS}
    pieces = [answer["seen"]["pieces"] for answer in answers]
    return {
        "clips": len(answers),
        "right": {question: right(table) for question, table in tables.items()},
        "all_right": sum(all(_seen(answer, q) == answer["wanted"][q] for q in QUESTIONS) for answer in answers)
        / len(answers),
        "with_ghosts": sum(share is not None and share >= GHOSTS for share in pieces) / len(answers),
        "confusion": tables,
    }


def confusion(answers: Iterable[Answer], question: str) -> Table:
    """The confusion table of one question; names in the order in which they first come up, by what was wanted."""
    table: Table = {}
    for answer in answers:
        row = table.setdefault(answer["wanted"][question], {})
        row[_seen(answer, question)] = row.get(_seen(answer, question), 0) + 1
    return table


def right(table: Table) -> float:
    """The share of a confusion table's clips that show what was wanted."""
    total = sum(sum(row.values()) for row in table.values())
    return sum(row.get(wanted, 0) for wanted, row in table.items()) / total


def markdown(judged: dict[str, Any]) -> str:
    """The shares and the confusion tables as Markdown, wanted down and seen across."""
    shares = ", ".join(f"{question} {share:.1%}" for question, share in judged["right"].items())
    lines = [f"{judged['clips']} clips: {shares}; all four {judged['all_right']:.1%}; ghosts in "
             f"{judged['with_ghosts']:.1%}"]  # fmt: skip
    for question, table in judged["confusion"].items():
        names = list(dict.fromkeys([*table, *(name for row in table.values() for name in row)]))
        lines += ["", f"| {question}: wanted, seen | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
        lines += [f"| {wanted} | {' | '.join(str(row.get(name, '')) for name in names)} |"
                  for wanted, row in table.items()]  # fmt: skip
    return "\n".join(lines)


def _seen(answer: Answer, question: str) -> str:
    return str(answer["seen"][question] or NOTHING)
