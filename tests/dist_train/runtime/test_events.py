"""events.jsonl: what is noted, and what readers leave out."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_train.config import LoggingConfig
from dist_train.monitoring.metrics_log import MetricsLog
from dist_train.runtime.events import EVENTS, read_events


def _log(run_dir: Path) -> MetricsLog:
    return MetricsLog(run_dir, 48, LoggingConfig(), {})


def test_starts_roll_backs_and_ends_are_noted_in_order(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    log = _log(tmp_path)
    log.open(8, ranks=2)
    log.write(16, 2, {"speed/images_per_second": 1.0})
    log.rewind(8, "the loss is nan")
    log.close()
    events = read_events(tmp_path)
    found = [(event.event, event.images_seen, event.ranks, event.why) for event in events]
    assert found == [
        ("start", 8, 2, ""),
        ("roll_back", 8, 0, "the loss is nan"),
        ("end", 8, 0, ""),
    ]
    assert events == sorted(events, key=lambda event: event.time)


def test_a_log_that_was_never_opened_notes_nothing(tmp_path: Path) -> None:
    _log(tmp_path).close()
    assert not (tmp_path / EVENTS).exists()


GOOD = '{"event": "start", "time": 1.5, "images_seen": 3, "later": 1}\n'


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '{"event": "dance", "time": 1.0, "images_seen": 0}',
        '{"event": "start", "time": NaN, "images_seen": 0}',
        '{"event": "start", "time": 1e300, "images_seen": 0}',
        '{"event": "start", "time": 1.0, "images_seen": -1}',
        '{"event": "start", "time": 1.0, "images_seen": 0, "ranks": "two"}',
        '{"event": "start", "time": 1.0}',
    ],
)
def test_damaged_lines_are_left_out(bad: str, tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text(GOOD + bad + "\n" + GOOD)
    assert [event.images_seen for event in read_events(tmp_path)] == [3, 3]
