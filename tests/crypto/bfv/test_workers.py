"""Exactness through the children, their limits, their deaths, and hostile bytes."""

import os
import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from crypto.bfv import process
from crypto.bfv.lanes import Lane, in_order
from crypto.bfv.parameters import (
    FRESH_BYTES,
    PLAIN_MODULUS,
    POLY_DEGREE,
    SECRET_KEY_BYTES,
    SEED_BYTES,
)
from crypto.bfv.pipes import HEADER, Code
from crypto.bfv.process import Child
from crypto.bfv.residues import unpack_residues
from crypto.bfv.tags import residuals
from crypto.bfv.workers import MEMORY_BYTES, Workers
from crypto.errors import WorkerFailed
from tests.crypto.bfv import hostile
from tests.crypto.bfv.hostile import NUM_VALUES, TAG_SEED, make_sum


@pytest.fixture(scope="module")
def two():
    with Workers(2) as both:
        yield both


@pytest.fixture(scope="module")
def made(two):
    return make_sum(two)


def residues_of(made):
    return np.stack([made.c0, made.c1], axis=1)


def decrypt(two, made, residues=None, key=None):
    residues = residues_of(made) if residues is None else residues
    blocks = [residues[index : index + 1] for index in range(len(residues))]
    return two.decrypt(
        key or made.key, blocks, tag_seed=TAG_SEED, num_values=NUM_VALUES
    )


def plain_sum(made):
    return sum(upload.slots.astype(object) for upload in made.uploads) % PLAIN_MODULUS


def zeros(num):
    return np.zeros((num, POLY_DEGREE), np.uint64)


def test_the_sum_is_exact(two, made):
    decrypted = decrypt(two, made)
    assert decrypted.residuals == made.expected
    assert decrypted.noise_budget_bits >= 8
    blocks = list(decrypted.slots())
    assert [len(block) for block in blocks] == [1, 1]
    slots = np.concatenate(blocks)
    assert (slots == plain_sum(made)).all()
    assert slots[0, 0] == 2**44 - 1


def test_several_vectors_are_held_and_each_is_given_out_once(two, made):
    first, second = decrypt(two, made), decrypt(two, made, residues_of(made)[::-1])
    third = decrypt(two, made)
    third.discard()
    assert (np.concatenate(list(second.slots())) == plain_sum(made)[::-1]).all()
    assert (np.concatenate(list(first.slots())) == plain_sum(made)).all()
    for spent in (first, second, third):
        with pytest.raises(RuntimeError, match="given out"):
            spent.slots()


def test_another_key_gives_nothing(two, made):
    decrypted = decrypt(two, made, key=two.make_key())
    assert decrypted.noise_budget_bits == 0
    assert decrypted.residuals != made.expected


def test_blocks_come_back_in_order_and_sums_over_silos_match(two):
    key, num = two.make_key(), 7
    assert len(key) == SECRET_KEY_BYTES
    blocks = [np.full((1, POLY_DEGREE), index, np.uint64) for index in range(num)]
    uploads = list(two.encrypt(key, blocks))
    assert [upload.nbytes for upload in uploads] == [FRESH_BYTES] * num
    fresh = np.frombuffer(b"".join(uploads), np.uint8).reshape(num, FRESH_BYTES)
    c0 = unpack_residues(fresh[:, :-SEED_BYTES].tobytes(), num)
    ((first, c1),) = two.expand_sum(fresh[None, :, -SEED_BYTES:])
    assert first == 0
    summed = np.stack([c0, c1], 1)
    parts = [summed[index : index + 1] for index in range(num)]
    num_values = (num - 1) * POLY_DEGREE
    held = two.decrypt(key, parts, tag_seed=TAG_SEED, num_values=num_values)
    slots = np.concatenate(list(held.slots()))
    assert held.residuals == residuals(slots, TAG_SEED, 0, num_values)
    assert (slots == np.arange(num)[:, None]).all()


def test_a_block_may_be_changed_after_it_was_given(two):
    key, block = two.make_key(), zeros(1)

    def blocks():
        for index in range(5):
            block[:] = index
            yield block

    for upload, index in zip(two.encrypt(key, blocks()), range(5), strict=True):
        fresh = np.frombuffer(upload, np.uint8)
        ((_, c1),) = two.expand_sum(fresh[None, None, -SEED_BYTES:])
        c0 = unpack_residues(fresh[:-SEED_BYTES].tobytes(), 1)
        held = two.decrypt(
            key, [np.stack([c0, c1], 1)], tag_seed=TAG_SEED, num_values=1
        )
        assert (next(held.slots()) == index).all()


def test_whoever_stops_early_leaves_the_workers_fit(two, made):
    running = two.encrypt(made.key, (zeros(1) for _ in range(100)))
    next(running)
    running.close()
    slots = decrypt(two, made).slots()
    next(slots)
    slots.close()

    def failing():
        yield zeros(1)
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        list(two.encrypt(made.key, failing()))
    assert decrypt(two, made).residuals == made.expected


def test_only_as_many_children_start_as_there_is_work_for():
    with Workers(2) as idle:
        assert idle.process_ids == []
        idle.make_key()
        assert len(idle.process_ids) == 1
        ids = idle.process_ids
    assert idle.process_ids == []
    for number in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    with pytest.raises(RuntimeError):
        idle.make_key()


def test_a_child_that_is_killed_is_one_error_and_the_next_call_works(two, made):
    held = decrypt(two, made)
    for number in two.process_ids:
        os.kill(number, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match=r"gone|SIGKILL"):
        list(held.slots())
    held.discard()
    assert decrypt(two, made).residuals == made.expected
    running = two.encrypt(made.key, (zeros(1) for _ in range(100)))
    next(running)
    for number in two.process_ids:
        os.kill(number, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        list(running)
    assert decrypt(two, made).residuals == made.expected


def test_a_child_beyond_its_memory_is_an_error():
    with Workers(1, memory_bytes=150 << 20) as small:
        key = small.make_key()
        with pytest.raises(WorkerFailed, match=r"memory|exit code|SIG"):
            list(small.encrypt(key, [zeros(256)]))
        assert len(small.make_key()) == SECRET_KEY_BYTES
    with Workers(1, memory_bytes=30 << 20) as tiny, pytest.raises(WorkerFailed):
        tiny.make_key()


def test_a_child_beyond_its_time_is_killed():
    with Workers(1) as slow:
        key = slow.make_key()
        (number,) = slow.process_ids
        slow._lanes[0].child._seconds = 0.2
        os.kill(number, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(WorkerFailed, match=r"longer than 0\.2 s"):
            slow.make_key()
        assert time.monotonic() - start < 5
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
        assert len(next(slow.encrypt(key, [zeros(1)]))) == FRESH_BYTES


def test_closing_ends_a_child_that_hangs():
    with Workers(1) as hanging:
        hanging.make_key()
        (number,) = hanging.process_ids
        os.kill(number, signal.SIGSTOP)
        running = hanging._lanes[0].submit(lambda child: child.request(Code.MAKE_KEY))
        while not running.running():
            time.sleep(0.001)
    with pytest.raises(WorkerFailed):
        running.result()


def test_work_that_closing_has_cancelled_is_refused():
    never_begun: Future[int] = Future()
    never_begun.cancel()
    jobs = iter([(Lane(MEMORY_BYTES, 60), never_begun)])
    with pytest.raises(WorkerFailed, match="closed while there was work"):
        next(in_order(jobs, 1))


REQUESTS = {
    "no code": (200, 0, 0, 0, b""),
    "an answer": (Code.DONE, 0, 0, 0, b""),
    "unknown key": (Code.ENCRYPT, 9, 1, 0, bytes(8 * POLY_DEGREE)),
    "unknown handle": (Code.DECRYPT, 9, 0, 1, bytes(16 * POLY_DEGREE)),
    "nothing held": (Code.RELEASE, 9, 0, 0, b""),
    "short key": (Code.SET_KEY, 1, 0, 0, bytes(7)),
    "key out of range": (Code.SET_KEY, 1, 0, 0, b"\xff" * SECRET_KEY_BYTES),
    "seeds of no silo": (Code.EXPAND, 0, 0, 0, b""),
    "seeds of another length": (Code.EXPAND, 2, 1, 0, bytes(SEED_BYTES)),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_garbage_to_a_child_ends_it_with_one_line(request_):
    *numbers, body = request_
    child = Child(MEMORY_BYTES, 60)
    with pytest.raises(WorkerFailed, match="homomorphic encryption: ") as caught:
        child.request(*numbers, body=[body])
    assert "\n" not in str(caught.value)
    assert not child.is_alive
    child.close()


def test_bytes_that_are_no_frame_end_a_child():
    child = Child(MEMORY_BYTES, 60)
    os.write(child._requests, b"\xff" * HEADER.size)
    with pytest.raises(WorkerFailed, match="beyond all limits"):
        child.request(Code.MAKE_KEY)
    child.close()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.write(1, b'?' * 99)", "something else"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.abort()", "SIGABRT"),
        ("import time; os = __import__('os'); os.close(1); time.sleep(9)", "closed"),
        ("import time; time.sleep(9)", "longer than 0.3 s"),
    ],
)
def test_a_child_that_is_mad_from_the_start(program, reason, monkeypatch):
    monkeypatch.setattr(process, "_START", program)
    monkeypatch.setattr(process, "_LAST_WORDS_SECONDS", 0.3)
    with Workers(1, seconds=0.3) as mad, pytest.raises(WorkerFailed, match=reason):
        mad.make_key()


def test_an_interpreter_that_is_missing(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with Workers(1) as none, pytest.raises(WorkerFailed, match="does not start"):
        none.make_key()


def test_the_command_and_environment_hold_no_key(two, made):
    (number, *_) = two.process_ids
    folder = Path(f"/proc/{number}")
    for name in ("cmdline", "environ"):
        assert made.key[:16] not in (folder / name).read_bytes()
    limits = (folder / "limits").read_text()
    assert "Max core file size        0                    0" in limits
    assert str(MEMORY_BYTES) in limits


def test_forgotten_workers_leave_no_children():
    child = Child(MEMORY_BYTES, 60)
    number = child.process_id
    child._process.stdin.close()
    assert child._process.wait(10) == 0
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.encrypt(b"", []),
        lambda w: w.encrypt(bytes(SECRET_KEY_BYTES), [zeros(0)]),
        lambda w: w.encrypt(bytes(SECRET_KEY_BYTES), [zeros(257)]),
        lambda w: w.encrypt(bytes(SECRET_KEY_BYTES), [zeros(1)[:, :8]]),
        lambda w: w.encrypt(bytes(SECRET_KEY_BYTES), [zeros(1) + np.uint64(2**45)]),
        lambda w: w.expand_sum(np.zeros((1, 1, 7), np.uint8)),
        lambda w: w.expand_sum(np.zeros((0, 1, SEED_BYTES), np.uint8)),
        lambda w: [w.decrypt(bytes(7), [], tag_seed=TAG_SEED, num_values=1)],
        lambda w: [w.decrypt(bytes(SECRET_KEY_BYTES), [], tag_seed=b"", num_values=1)],
        lambda w: [
            w.decrypt(bytes(SECRET_KEY_BYTES), [], tag_seed=TAG_SEED, num_values=1)
        ],
        lambda w: [Workers(0)],
    ],
)
def test_what_no_caller_should_pass_is_refused(call, two):
    with pytest.raises(ValueError, match=r"key|block|slot|seed|none|least"):
        list(call(two))


def test_hostile_bytes_are_refused_or_change_nothing(made):
    random = Random(7)
    for _ in range(300):
        assert made.play(random) != hostile.WRONG
    cases, outcomes = zip(*(name.split(": ") for name in made.counts), strict=True)
    assert len(set(cases)) == len(hostile.CASES)
    assert set(outcomes) == {"malformed", "too noisy", "other residuals", "exact"}
    exact = {name for name in made.counts if name.endswith(": exact")}
    assert exact == {"bits_flipped: exact"}
    assert made.read(made.wire()) == "exact"


def test_the_fuzz_notices_a_wrong_value(made):
    other = replace(made, uploads=[*made.uploads[:2], replace(made.uploads[2])])
    other.uploads[2].slots = made.uploads[2].slots + np.uint64(1)
    assert other.read(made.wire()) == hostile.WRONG
