"""When the control loop hears of chunks."""

from __future__ import annotations

from meshray import config
from meshray.store.bulk_findings import Findings
from meshray.store.events import ChunksArrived, ChunksBad, TransferEnded

NOW = 5_000_000_000


def arrive(findings: Findings, *chunks: int, now_ns: int = NOW) -> None:
    for chunk in chunks:
        findings.answered(1)
        findings.add(ChunksArrived, b"x", "n1", chunk, now_ns)


def test_chunks_are_told_of_while_as_many_are_still_on_their_way() -> None:
    findings = Findings()
    findings.asked(6)
    arrive(findings, 0, 1)
    assert findings.due_ns() == NOW + config.BULK_TELL_NS
    arrive(findings, 2, now_ns=NOW + 9)
    assert findings.due_ns() == 0
    assert findings.take() == [ChunksArrived(b"x", "n1", [0, 1, 2])] and findings.due_ns() is None


def test_a_batch_is_as_old_as_its_first_chunk() -> None:
    findings = Findings()
    findings.asked(16)
    arrive(findings, 0)
    arrive(findings, 1, now_ns=NOW + 7)
    assert findings.due_ns() == NOW + config.BULK_TELL_NS
    findings.take()
    arrive(findings, 2, now_ns=NOW + 30)
    assert findings.due_ns() == NOW + 30 + config.BULK_TELL_NS


def test_a_single_chunk_and_anything_but_a_good_chunk_is_told_at_once() -> None:
    single = Findings()
    single.asked(1)
    arrive(single, 0)
    assert single.due_ns() == 0
    bad, ended = Findings(), Findings()
    for findings in (bad, ended):
        findings.asked(10)
    bad.add(ChunksBad, b"x", "n1", 0, NOW)
    ended.add_other(TransferEnded(3))
    assert bad.due_ns() == ended.due_ns() == 0
    assert bad.take() == [ChunksBad(b"x", "n1", [0])] and ended.take() == [TransferEnded(3)]
    assert bad.due_ns() is None and ended.due_ns() is None


def test_chunks_that_were_lost_are_not_awaited_for_ever() -> None:
    findings = Findings()
    findings.asked(16)
    findings.forget_asked()
    findings.asked(1)
    arrive(findings, 4)
    assert findings.due_ns() == 0
    findings.answered(3)
    arrive(findings, 5)
    assert findings.due_ns() == 0
