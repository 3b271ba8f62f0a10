"""`python -m tests.fuzz`: mutate every kind of file that is read, and see what its readers do.

python -m tests.fuzz --count 50000               the run by hand; ends with a table
python -m tests.fuzz --subject sources.zip --count 500 --first 2000
python -m tests.fuzz --subject NAME --seed N     once more, in full
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported: threads do not survive a fork

# ruff: noqa: E402

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import HEADER, Campaign, Report
from tests.fuzz.subjects import SUBJECTS
from tests.paths import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", action="append", help="name, or its beginning; default: all")
    parser.add_argument("--count", type=int, default=2000, help="mutations, of all subjects")
    parser.add_argument("--first", type=int, default=0, help="first seed of each subject")
    parser.add_argument("--seed", type=int, help="one mutation, in full")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="print reports for programs")
    options = parser.parse_args()
    wanted = tuple(options.subject or ("",))
    names = [name for name in SUBJECTS if name in wanted] or [
        name for name in SUBJECTS if name.startswith(wanted)
    ]
    if not names:
        parser.error(f"no subject is named so; there are {', '.join(SUBJECTS)}")
    each = -(-options.count // len(names))
    if options.seed is not None:
        return replay(names[0], options.seed)
    if options.processes > 1 and len(names) > 1:
        reports = in_processes(names, each, options.first, options.processes)
    else:
        reports = fuzz(names, each, options.first, quiet=options.json)
    if options.json:
        print(json.dumps([[r.subject, r.counts, r.escapes] for r in reports]))
        return 0
    show(reports)
    return 1 if any(report.escapes for report in reports) else 0


def fuzz(names: list[str], each: int, first: int, quiet: bool = False) -> list[Report]:
    """Fuzz subjects in this process."""
    campaign = Campaign()
    reports = []
    try:
        for name in names:
            begin = time.monotonic()
            reports.append(campaign.fuzz(SUBJECTS[name], range(first, first + each)))
            rate = (time.monotonic() - begin) / each
            print(f"{reports[-1].row()}  {1000 * rate:6.0f} ms each", file=sys.stderr, flush=True)
    finally:
        campaign.close()
    return reports


def in_processes(names: list[str], each: int, first: int, processes: int) -> list[Report]:
    """Fuzz subjects in several processes, each with its own sandbox."""
    begun = []
    for number in range(processes):
        part = [f"--subject={name}" for name in names[number::processes]]
        if part:
            count = f"--count={each * len(part)}"
            command = [sys.executable, "-m", "tests.fuzz", "--json", "--processes=1", count]
            begun.append(
                subprocess.Popen(
                    [*command, f"--first={first}", *part], cwd=ROOT, stdout=subprocess.PIPE
                )
            )
    reports = []
    for process in begun:
        content, _ = process.communicate()
        assert process.returncode == 0, "a process of the fuzzer died"
        for subject, counts, escapes in json.loads(content):
            report = Report(subject)
            report.counts.update(counts)
            report.escapes = {int(seed): why for seed, why in escapes.items()}
            reports.append(report)
    return sorted(reports, key=lambda report: names.index(report.subject))


def show(reports: list[Report]) -> None:
    """Print escapes, and a table."""
    for report in reports:
        for seed, why in report.escapes.items():
            print(f"--subject {report.subject} --seed {seed}\n    {why.strip()[-1500:]}")
    print(HEADER, *(report.row() for report in reports), sep="\n")
    total = Report("all")
    for report in reports:
        total.counts.update(report.counts)
    print(total.row())


def replay(name: str, seed: int) -> int:
    """Try one mutation and say everything about it."""
    campaign = Campaign()
    mutation, verdict, outcome = campaign.once(SUBJECTS[name], seed)
    kept = Path("/tmp") / f"fuzz-{name}-{seed}"
    subprocess.run(["rm", "-rf", kept], check=True)
    subprocess.run(["cp", "-a", campaign.sandbox.path, kept], check=True)
    campaign.close()
    print(f"{mutation}\n{verdict.end}: {verdict.why}\nexit code {outcome.code},", end=" ")
    print(f"{outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB; the sandbox is kept in {kept}")
    for stream in ("out", "err", "log", "crash"):
        print(f"--- {stream}\n{getattr(outcome, stream)}")
    return 1 if verdict.end == "escape" else 0


if __name__ == "__main__":
    sys.exit(main())
