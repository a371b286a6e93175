"""An audit's report as a table for people, and as JUnit XML for CI servers."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Final
from xml.sax.saxutils import escape, quoteattr

import click

from flask_redis_guard.testing.faults import Kind
from flask_redis_guard.testing.findings import BAD, AuditFinding, AuditReport

_HEADS: Final[dict[Kind, str]] = {
    "refused": "refused",
    "hang": "hang",
    "slow": "slow",
    "read-only": "readonly",
    "out-of-memory": "no mem.",
    "empty": "empty",
    "half-way": "half-way",
}
_CELL: Final = 10
_COLOURS: Final = {"refused": "green", "served": None, "hang": "red", "500": "red", "bypass": "red"}
_WIDEST: Final = 44

#: Seconds from which a time stands in a cell.
_WORTH_TELLING: Final = 0.05


def as_table(report: AuditReport, fail_on: Iterable[str] = BAD, *, colour: bool = False) -> str:
    """Return a report for people.

    :param report: the report.
    :param fail_on: the verdicts that fail.
    :param colour: whether a terminal shows it.
    """
    bad = report.bad(fail_on)
    parts = [_title(report, colour), _grid(report, colour), _legend(report, colour)]
    parts += [_to_do(bad, colour), _skipped(report, colour), _verdict(report, bad, colour)]
    return "\n\n".join(part for part in parts if part)


def _title(report: AuditReport, colour: bool) -> str:
    requests = len({one.request for one in report.findings})
    text = f"Redis audit of {report.app}"
    rest = f"  {_count(requests, 'request')} under {_count(len(report.faults), 'fault')}"
    return _style(text, colour, bold=True) + f"{rest}, {report.seconds:.0f} s"


def _grid(report: AuditReport, colour: bool) -> str:
    titles = list(dict.fromkeys(one.request for one in report.findings))
    if not titles:
        return ""
    by_cell = {(one.request, one.fault): one for one in report.findings}
    width = min(_WIDEST, max(len(title) for title in titles)) + 2
    heads = "".join(f"{_HEADS[kind]:{_CELL}}" for kind in report.faults)
    lines = [_style((" " * width + heads).rstrip(), colour, dim=True)]
    untouched = []
    for title in titles:
        row = [by_cell[title, kind] for kind in report.faults]
        if _is_untouched(row):
            untouched.append(title)
            continue
        cells = "".join(_cell(one, colour) for one in row)
        lines.append((_cut(title, width) + cells).rstrip())
    if len(lines) == 1:
        lines = []
    if untouched:
        text = f"Without Redis, and served under every fault: {', '.join(untouched)}"
        lines.append(_style(textwrap.fill(text, _columns(), subsequent_indent="  "), colour))
    return "\n".join(lines)


def _is_untouched(row: list[AuditFinding]) -> bool:
    return not any(one.uses_redis or one.note or one.verdict != "served" for one in row)


def _cell(one: AuditFinding, colour: bool) -> str:
    word = str(one.status) if one.verdict in ("refused", "served") else one.verdict.upper()
    seconds = f" {one.seconds:.1f}s" if one.seconds >= _WORTH_TELLING else ""
    if one.verdict in ("hang", "bypass"):
        seconds = ""
    if one.accepted:
        word = word.lower() + "*"
    tone = "yellow" if one.accepted else _COLOURS[one.verdict]
    text = f"{word}{seconds}"
    padding = " " * max(1, _CELL - len(text))
    return _style(text, colour, fg=tone, bold=one.verdict in BAD and not one.accepted) + padding


def _legend(report: AuditReport, colour: bool) -> str:
    found = {one.verdict for one in report.findings}
    meanings = [
        ("refused", "503 429 401 403 refused properly"),
        ("served", "200 served"),
        ("hang", f"HANG no answer in {report.patience:g} s"),
        ("500", "500 an error of the app"),
        ("bypass", "BYPASS served beyond its limit, or a login that cannot have worked"),
    ]
    shown = [text for verdict, text in meanings if verdict in found]
    if any(one.accepted for one in report.findings):
        shown.append("* accepted in its example")
    lines = textwrap.wrap("  ·  ".join(shown), _columns())
    return _style("\n".join(lines), colour, dim=True)


def _to_do(bad: list[AuditFinding], colour: bool) -> str:
    """Return each bad verdict with its requests and what to do about them."""
    groups: dict[tuple[str, str], dict[str, list[AuditFinding]]] = {}
    for one in sorted(bad, key=lambda one: -BAD_ORDER.get(one.verdict, 0)):
        groups.setdefault((one.verdict, one.advice), {}).setdefault(one.request, []).append(one)
    if not groups:
        return ""
    lines = [_style("What to do", colour, bold=True)]
    for (verdict, advice), requests in groups.items():
        width = min(_WIDEST, max(map(len, requests))) + 2
        lines.append("")
        for number, (request, found) in enumerate(requests.items()):
            mark = "" if number else verdict.upper()
            faults = ", ".join(one.fault for one in found)
            head = _style(f"{mark:8}", colour, fg="red", bold=True)
            lines.append(f"{head}{_cut(request, width)}{faults}")
            lines += _indented(_told(found), 8 + width)
        lines += _indented(f"→ {advice}" if advice else "", 8)
    return "\n".join(lines)


def _told(found: list[AuditFinding]) -> str:
    """Return what is known of the first of some findings for which something is."""
    for one in found:
        if one.note:
            return one.note
        if one.cause is not None and (one.cause.what or one.cause.where):
            return f"waits {one.cause}" if one.verdict == "hang" else str(one.cause)
        if one.verdict == "hang" and one.cause is not None and one.cause.library:
            return f"waits in {one.cause.library}"
    return ""


def _indented(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        _columns(),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2 * text.startswith("→")),
        break_long_words=False,
        break_on_hyphens=False,
    )


#: In which order the bad verdicts are told.
BAD_ORDER: Final = {"bypass": 3, "hang": 2, "500": 1}


def _skipped(report: AuditReport, colour: bool) -> str:
    if not report.skipped:
        return ""
    lines = [_style(f"Not judged ({len(report.skipped)})", colour, bold=True)]
    width = min(_WIDEST, max(len(one.title) for one in report.skipped)) + 2
    lines += [f"  {_cut(one.title, width)}{one.reason}" for one in report.skipped]
    return "\n".join(lines)


def _verdict(report: AuditReport, bad: list[AuditFinding], colour: bool) -> str:
    notes = [f"Note: {note}." for note in report.notes]
    if not report.findings:
        return "\n".join([*notes, _style("FAILED: nothing could be judged.", colour, fg="red")])
    if not bad:
        text = "PASSED: every request is refused properly or served."
        return "\n".join([*notes, _style(text, colour, fg="green", bold=True)])
    counts = Counter(one.verdict for one in bad)
    requests = len({one.request for one in bad})
    total = len({one.request for one in report.findings})
    what = ", ".join(f"{counts[verdict]} × {verdict}" for verdict in sorted(counts))
    text = f"FAILED: {requests} of {_count(total, 'request')} fail in an outage ({what})."
    return "\n".join([*notes, _style(text, colour, fg="red", bold=True)])


def as_junit(report: AuditReport, fail_on: Iterable[str] = BAD) -> str:
    """Return a report as JUnit XML: a suite for each fault, a case for each request.

    :param report: the report.
    :param fail_on: the verdicts that fail.
    """
    bad = report.bad(fail_on)
    lines = ['<?xml version="1.0" encoding="utf-8"?>']
    cases = len(report.findings) + len(report.skipped)
    lines.append(
        f'<testsuites name="redis-guard audit" tests="{cases}" failures="{len(bad)}" '
        f'skipped="{len(report.skipped)}" time="{report.seconds:.3f}">'
    )
    for kind in report.faults:
        found = [one for one in report.findings if one.fault == kind]
        failing = [one for one in found if one in bad]
        seconds = sum(one.seconds for one in found)
        lines.append(
            f'  <testsuite name="{kind}" tests="{len(found)}" failures="{len(failing)}" '
            f'time="{seconds:.3f}">'
        )
        lines += [_case(report.app, one, one in failing) for one in found]
        lines.append("  </testsuite>")
    if report.skipped:
        count = len(report.skipped)
        lines.append(f'  <testsuite name="not judged" tests="{count}" skipped="{count}" time="0">')
        for skip in report.skipped:
            name, reason = _attribute(skip.title), _attribute(skip.reason)
            lines.append(
                f"    <testcase classname={_attribute(report.app)} name={name}>"
                f"<skipped message={reason}/></testcase>"
            )
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _case(app: str, one: AuditFinding, fails: bool) -> str:
    head = (
        f"    <testcase classname={_attribute(f'{app}.{one.fault}')} "
        f'name={_attribute(one.request)} time="{one.seconds:.3f}"'
    )
    if not fails:
        return head + "/>"
    told = [one.note, str(one.cause) if one.cause else "", one.advice]
    text = escape(_printable("\n".join(part for part in told if part)))
    message = f"{one.verdict}: {one.note or f'status {one.status}'}"
    return f"{head}><failure message={_attribute(message)}>{text}</failure></testcase>"


def _attribute(text: str) -> str:
    return quoteattr(_printable(text))


def _printable(text: str) -> str:
    """Return a text without what XML cannot say."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _style(
    text: str, colour: bool, *, fg: str | None = None, bold: bool = False, dim: bool = False
) -> str:
    if not colour:
        return text
    return click.style(text, fg=fg, bold=bold or None, dim=dim or None)


def _cut(text: str, width: int) -> str:
    return f"{text:{width}}" if len(text) <= width - 2 else f"{text[: width - 3]}…  "


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _columns() -> int:
    return max(60, min(100, shutil.get_terminal_size().columns))
