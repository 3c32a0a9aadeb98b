import fcntl
import multiprocessing
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import silo.account
from crypto.keys import IdentityKey
from privacy.accounting import Budget, would_exceed
from privacy.errors import BudgetExceeded
from privacy.events import SampledGaussian
from protocol.files import load_secret
from silo.account import PrivacyAccount
from silo.data import ImageSet, with_patients
from silo.entries import Closed, Interrupted, LedgerHead, Released, Reserved, Taken
from silo.errors import SiloError, StateBroken
from silo.ledger import LedgerBroken
from silo.overlap import AccountRefused
from silo.partial import CheckpointOutdated, PartialRound
from silo.units import UnitKind, units_of

KEY = IdentityKey.from_bytes(bytes(range(32)))
MODEL = "ab" * 32
EVENT = SampledGaussian(
    sample_rate=0.5, noise_multiplier=1.5, clipping_norm=1.0, steps=10
)
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)


def image_set(*numbers: int, patients: bool = True) -> ImageSet:
    """Return images by their numbers; four of each patient, if that is known."""
    images = ImageSet(IMAGES[list(numbers)], (0.0, 255.0))
    names = [f"p{number // 4}" for number in numbers]
    return with_patients(images, names, "here") if patients else images


def steps_budget(steps: int, delta: float = 1e-5) -> Budget:
    """Return a budget of so many steps, for :func:`by_steps`."""
    return Budget(float(steps), delta)


@pytest.fixture
def by_steps(monkeypatch):
    """Let a step cost 1 at a plan's delta and 2 at the policy's, whatever it is."""

    def price(events, delta: float) -> float:
        return sum(event.steps for event in events) * (1 if delta == 1e-5 else 2)

    monkeypatch.setattr(silo.account, "epsilon", price)
    monkeypatch.setattr(
        silo.account,
        "would_exceed",
        lambda budget, spent, planned: (
            price([*spent, *planned], budget.delta) > budget.epsilon
        ),
    )


def opened(
    folder: Path,
    name: str = "run",
    images: ImageSet | None = None,
    unit: UnitKind = "example",
    **changes,
) -> PrivacyAccount:
    images = images or image_set(*range(8))
    arguments = {
        "plan": "ef" * 32,
        "delta": 1e-5,
        "identity": KEY,
        "run_budget": None,
        "account_limit": None,
    }
    units = units_of(images, unit)
    return PrivacyAccount.open(
        folder, name, images=images, units=units, **(arguments | changes)
    )


def spend(folder: Path, name: str, images: ImageSet, steps: int, **changes) -> None:
    with opened(folder, name, images, **changes) as account:
        account.reserve(1, EVENT.times(steps))
        account.take(steps)
        account.close_round(1)


def kinds(account: PrivacyAccount) -> list[str]:
    return [entry.kind for entry in account.ledger.entries]


def total(events) -> int:
    return sum(event.steps for event in events)


class TestOneRound:
    def test_from_reservation_to_close(self, tmp_path):
        with opened(tmp_path) as account:
            done = account.begin(
                1, EVENT, checkpoint_steps=4, model=MODEL, partial=None
            )
            assert done == 0
            assert account.events == (EVENT,)
            for steps in (4, 4, 2):
                head = account.take(steps)
                assert account.head == head
                assert account.events == (EVENT,)
            account.close_round(1)
            account.close_round(1)
        assert account.ledger.entries[1:] == (
            Reserved(round_number=1, event=EVENT, checkpoint_steps=4),
            Taken(round_number=1, steps=4),
            Taken(round_number=1, steps=4),
            Taken(round_number=1, steps=2),
            Closed(round_number=1),
        )

    def test_a_round_that_ends_early_gives_the_rest_back(self, tmp_path):
        with opened(tmp_path) as account:
            account.reserve(1, EVENT)
            account.take(3)
            account.close_round(1)
            assert account.events == (EVENT.times(3),)

    def test_the_same_reservation_twice_is_one(self, tmp_path):
        with opened(tmp_path) as account:
            account.reserve(1, EVENT, checkpoint_steps=4)
            account.reserve(1, EVENT, checkpoint_steps=4)
            assert kinds(account) == ["opened", "reserved"]
            account.take(4)
            with pytest.raises(RuntimeError, match="round 1 is open"):
                account.reserve(1, EVENT, checkpoint_steps=4)

    def test_steps_beyond_what_was_reserved_are_written_all_the_same(self, tmp_path):
        with opened(tmp_path) as account:
            account.reserve(1, EVENT, checkpoint_steps=4)
            with pytest.raises(RuntimeError, match="5 steps were taken, 4 were perm"):
                account.take(5)
            with pytest.raises(RuntimeError, match="6 steps were taken, 4 were perm"):
                account.take(6)
            assert account.events == (EVENT.times(11),)

    def test_calls_out_of_order(self, tmp_path):
        with opened(tmp_path) as account:
            with pytest.raises(RuntimeError, match="not reserved"):
                account.take(1)
            with pytest.raises(RuntimeError, match="not open"):
                account.close_round(1)
            account.reserve(1, EVENT)
            with pytest.raises(RuntimeError, match="round 1 is open"):
                account.reserve(2, EVENT)
            with pytest.raises(RuntimeError, match="round 2 is not open"):
                account.close_round(2)
            account.interrupt()
            with pytest.raises(RuntimeError, match="not reserved"):
                account.take(1)

    def test_a_release_between_rounds(self, tmp_path):
        with opened(tmp_path) as account:
            account.release(EVENT.times(1), "central images")
            entry = account.ledger.entries[-1]
            assert entry == Released(event=EVENT.times(1), what="central images")
            assert account.events == (EVENT.times(1),)


class TestOpening:
    def test_what_it_says(self, tmp_path):
        folder = tmp_path / "silo" / "ledgers"
        with opened(folder, is_secure=False, fresh=True, unit="patient") as account:
            entry = account.opened
        assert (entry.ledger, entry.plan, entry.unit) == ("run", "ef" * 32, "patient")
        assert (entry.delta, entry.relation) == (1e-5, "add-or-remove-one")
        assert (entry.fresh, entry.randomness) == (True, "insecure-seed")
        assert entry.earlier == ()
        assert account.commitment == entry.commitment
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.rglob("*"):
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected

    def test_again(self, tmp_path):
        spend(tmp_path, "run", image_set(1, 2), 3)
        with opened(tmp_path, images=image_set(2, 1)) as account:
            assert account.events == (EVENT.times(3),)
            assert account.head.size == 4

    def test_commitments_of_one_data_set_are_not_linked(self, tmp_path):
        with opened(tmp_path, "a") as one, opened(tmp_path, "b") as other:
            assert one.commitment != other.commitment

    @pytest.mark.parametrize(
        ("images", "words"),
        [
            (image_set(*range(7)), "of another data set"),
            (image_set(*range(9)), "of another data set"),
            (image_set(*range(8), patients=False), "of another data set"),
        ],
    )
    def test_of_another_data_set(self, tmp_path, images, words):
        opened(tmp_path).close()
        with pytest.raises(AccountRefused, match=words):
            opened(tmp_path, images=images)
        opened(tmp_path).close()  # Nothing was lost, and nobody holds it.

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"plan": "00" * 32}, "another plan"),
            ({"delta": 1e-6}, "another delta: 1e-05"),
            ({"unit": "patient"}, "another unit: example"),
            ({"is_secure": False}, "randomness is operating-system"),
            ({"fresh": True}, "--new-ledger is for a run that has none yet"),
        ],
    )
    def test_for_another_purpose(self, tmp_path, changes, words):
        opened(tmp_path).close()
        with pytest.raises(AccountRefused, match=words) as caught:
            opened(tmp_path, **changes)
        assert "\n" not in str(caught.value)

    def test_a_fresh_one_stays_fresh(self, tmp_path):
        spend(tmp_path, "old", image_set(1), 7)
        opened(tmp_path, fresh=True).close()
        with opened(tmp_path) as account:
            assert account.fresh
            assert account.earlier_events == ()

    def test_what_is_half_made_is_made_anew(self, tmp_path):
        half = tmp_path / ".run.partial"
        half.mkdir(parents=True)
        (half / "tags").write_bytes(b"cut off")
        (tmp_path / ".tags.key.x.tmp").write_bytes(b"cut off")
        opened(tmp_path).close()
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["run", "tags.key"]

    @pytest.mark.parametrize("name", ["", ".hidden", "a/b", ".."])
    def test_a_name_that_is_no_folder(self, tmp_path, name):
        with pytest.raises(ValueError, match="name"):
            opened(tmp_path, name)

    def test_a_lost_key(self, tmp_path):
        opened(tmp_path).close()
        (tmp_path / "tags.key").unlink()
        with pytest.raises(StateBroken, match=r"tags\.key: is missing"):
            opened(tmp_path, "other")
        assert not (tmp_path / "tags.key").exists()

    def test_another_key(self, tmp_path):
        opened(tmp_path).close()
        (tmp_path / "tags.key").write_bytes(b"ab" * 32 + b"\n")
        for name in ("run", "other"):
            with pytest.raises((LedgerBroken, AccountRefused), match=r"tags\.key"):
                opened(tmp_path, name)

    def test_a_damaged_neighbour_stops_everybody(self, tmp_path):
        opened(tmp_path).close()
        path = tmp_path / "run" / "ledger.jsonl"
        path.write_bytes(path.read_bytes().replace(b"example", b"patient"))
        with pytest.raises(LedgerBroken, match="ledger run, entry 0"):
            opened(tmp_path, "other", image_set(30))
        assert not (tmp_path / "other").exists()


class TestOverlap:
    @pytest.mark.parametrize(
        ("images", "counts"),
        [
            (image_set(*range(8)), True),
            (image_set(7, *range(20, 39)), True),
            (image_set(1), True),
            # Other images of patient p1; of nobody who is known; of others.
            (image_set(4, 5, 20), True),
            (image_set(4, 5, 20, patients=False), False),
            (image_set(20, 21), False),
        ],
    )
    def test_one_shared_unit_is_enough(self, tmp_path, images, counts):
        spend(tmp_path, "old", image_set(0, 1, 6, 7), 7)
        with opened(tmp_path, "new", images) as account:
            assert total(account.earlier_events) == (7 if counts else 0)
            names = [earlier.ledger for earlier in account.opened.earlier]
            assert names == (["old"] if counts else [])

    def test_a_patient_is_recognised_by_other_images(self, tmp_path):
        spend(tmp_path, "old", image_set(4), 7)
        with opened(tmp_path, "new", image_set(5)) as account:
            assert total(account.earlier_events) == 7
        with opened(tmp_path, "free", image_set(5, patients=False)) as account:
            assert [e.ledger for e in account.opened.earlier] == ["new"]

    def test_it_is_not_handed_on(self, tmp_path):
        """a-b and b-c overlap, a-c do not: no image of c was in a."""
        spend(tmp_path, "a", image_set(0, 1, patients=False), 1)
        spend(tmp_path, "b", image_set(1, 2, patients=False), 10)
        with opened(tmp_path, "c", image_set(2, 3, patients=False)) as account:
            assert total(account.earlier_events) == 10

    def test_later_and_open_ledgers_count(self, tmp_path):
        with opened(tmp_path, "first") as first, opened(tmp_path, "second") as second:
            second.reserve(1, EVENT)
            second.take(2)
            assert total(first.earlier_events) == 10
            assert first.opened.earlier == ()
            second.close_round(1)
            assert total(first.earlier_events) == 2

    def test_a_fresh_ledger_counts_for_others_only(self, tmp_path, by_steps):
        spend(tmp_path, "old", image_set(1), 7)
        limit = steps_budget(18, 1e-6)
        changes = {"images": image_set(1), "account_limit": limit}
        with opened(tmp_path, "new", **changes, fresh=True) as account:
            assert account.fresh
            assert account.earlier_events == ()
            assert [e.ledger for e in account.opened.earlier] == ["old"]
            account.reserve(1, EVENT.times(9))
            account.close_round(1)
            account.release(EVENT.times(9), "x")
        with opened(tmp_path, "newer", **changes) as account:
            assert total(account.earlier_events) == 16
            with pytest.raises(BudgetExceeded):
                account.reserve(1, EVENT.times(1))

    @pytest.mark.parametrize("change", ["removed", "cut off"])
    def test_an_earlier_ledger_set_back(self, tmp_path, change):
        spend(tmp_path, "old", image_set(1), 7)
        opened(tmp_path, "new", image_set(1)).close()
        path = tmp_path / "old" / "ledger.jsonl"
        if change == "removed":
            shutil.rmtree(tmp_path / "old")
        else:
            path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:2]))
        with pytest.raises(LedgerBroken, match="ledger old, which this run's"):
            opened(tmp_path, "new", image_set(1))


class TestUnits:
    def test_patients_do_not_compose_with_examples(self, tmp_path):
        spend(tmp_path, "old", image_set(1), 7)
        with pytest.raises(AccountRefused, match=r"unit example.*--new-ledger") as why:
            opened(tmp_path, "new", image_set(1), "patient")
        assert "\n" not in str(why.value)
        assert not (tmp_path / "new").exists()
        with opened(tmp_path, "new", image_set(1), "patient", fresh=True) as account:
            account.reserve(1, EVENT)

    def test_patients_do_not_compose_to_examples(self, tmp_path):
        """One image less of a patient moves the patient's gradient by up to 2 C."""
        spend(tmp_path, "old", image_set(1), 7, unit="patient")
        with (
            pytest.raises(AccountRefused, match="--new-ledger"),
            opened(tmp_path, "new", image_set(1)),
        ):
            pass

    def test_nothing_was_spent_at_the_weaker_unit_yet(self, tmp_path):
        with (
            opened(tmp_path, "old", image_set(1)) as old,
            opened(tmp_path, "new", image_set(1), "patient") as new,
        ):
            new.reserve(1, EVENT)
            with pytest.raises(AccountRefused, match="ledger new spent"):
                old.reserve(1, EVENT)
            assert kinds(old) == ["opened"]
            new.take(10)
            new.close_round(1)
            new.reserve(2, EVENT)


class TestLimits:
    def test_of_the_plan(self, tmp_path, by_steps):
        spend(tmp_path, "old", image_set(1), 90)
        with opened(
            tmp_path, images=image_set(1), run_budget=steps_budget(15)
        ) as account:
            account.reserve(1, EVENT)
            account.take(10)
            account.close_round(1)
            before = kinds(account)
            with pytest.raises(BudgetExceeded) as caught:
                account.reserve(2, EVENT.times(6))
            assert str(caught.value) == (
                "round 2 needs 6 steps, which would bring epsilon from 10 to 16 at "
                "delta 1e-05, above the plan's budget of 15; nothing was trained"
            )
            assert kinds(account) == before
            account.reserve(2, EVENT.times(5))

    def test_of_the_silo(self, tmp_path, by_steps):
        spend(tmp_path, "old", image_set(1), 5)
        limit = steps_budget(20, 1e-6)  # Ten steps, at this delta.
        with opened(tmp_path, images=image_set(1), account_limit=limit) as account:
            with pytest.raises(BudgetExceeded, match="from 10 to 22 at delta 1e-06"):
                account.reserve(1, EVENT.times(6))
            with pytest.raises(BudgetExceeded, match="this silo's own limit of 20"):
                account.release(EVENT.times(6), "central images")
            account.reserve(1, EVENT.times(4))
            with pytest.raises(BudgetExceeded, match="central images needs 2 steps"):
                account.release(EVENT.times(2), "central images")
            account.release(EVENT.times(1), "central images")
            assert kinds(account) == ["opened", "reserved", "released"]

    def test_a_reservation_of_another_run_counts(self, tmp_path, by_steps):
        limit = steps_budget(20, 1e-6)
        with (
            opened(tmp_path, "a", account_limit=limit) as one,
            opened(tmp_path, "b", account_limit=limit) as other,
        ):
            one.reserve(1, EVENT.times(6))
            with pytest.raises(BudgetExceeded):
                other.reserve(1, EVENT.times(5))
            one.take(3)
            one.close_round(1)
            other.reserve(1, EVENT.times(7))
            with pytest.raises(BudgetExceeded):
                one.reserve(2, EVENT.times(1))

    def test_the_real_price(self, tmp_path):
        event = EVENT.times(1)
        steps = next(
            n
            for n in range(1, 99)
            if would_exceed(Budget(8.0, 1e-5), (), [event.times(n)])
        )
        with opened(tmp_path, run_budget=Budget(8.0, 1e-5)) as account:
            account.reserve(1, event.times(steps - 1))
            account.take(steps - 1)
            account.close_round(1)
            with pytest.raises(BudgetExceeded, match="above the plan's budget of 8"):
                account.reserve(2, event)


def reserve_in_child(folder: Path, name: str, limit: Budget) -> None:
    """Take steps one by one until the limit refuses; run in a process of its own."""
    with opened(folder, name, account_limit=limit) as account:
        try:
            for number in range(1, 30):
                account.reserve(number, EVENT.times(1))
                account.take(1)
                account.close_round(number)
        except BudgetExceeded:
            return
    os._exit(1)


@pytest.mark.parametrize("act", ["reserve", "release"])
def test_the_folder_is_held_from_the_check_to_the_entry(tmp_path, monkeypatch, act):
    def is_held(*_: object) -> bool:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        held.append(act)
        return False

    held: list[str] = []
    with opened(tmp_path, run_budget=steps_budget(1)) as account:
        monkeypatch.setattr(silo.account, "would_exceed", is_held)
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *a: is_held() or real(*a))
        if act == "reserve":
            account.reserve(1, EVENT)
        else:
            account.release(EVENT, "x")
    assert held == [act, act]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_at_once_cannot_overspend_together(tmp_path, by_steps):
    limit = steps_budget(40, 1e-6)
    context = multiprocessing.get_context("fork")
    names = [f"run-{number}" for number in range(3)]
    processes = [
        context.Process(target=reserve_in_child, args=(tmp_path, name, limit))
        for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with opened(tmp_path, "last") as account:
        assert total(account.earlier_events) == 20


def saved(account: PrivacyAccount, step: int, **changes) -> PartialRound:
    """Return the checkpoint that a trainer would save now."""
    made = PartialRound(round_number=1, model=MODEL, step=step, ledger=account.head)
    return replace(made, **changes)


def begin(account: PrivacyAccount, partial: PartialRound | None, **changes) -> int:
    arguments = {"round_number": 1, "event": EVENT, "checkpoint_steps": 4}
    return account.begin(**(arguments | changes), model=MODEL, partial=partial)


class TestInterruption:
    def test_is_counted_by_the_next_process(self, tmp_path):
        with opened(tmp_path) as account:
            begin(account, None)
            account.take(4)
            partial = saved(account, 4)
        with opened(tmp_path) as account:
            for call in (
                lambda: account.take(1),
                lambda: account.close_round(1),
                lambda: account.reserve(1, EVENT),
            ):
                with pytest.raises(RuntimeError, match="not settled"):
                    call()
            assert begin(account, partial) == 4
            assert account.ledger.entries[-2:] == (
                Interrupted(round_number=1, steps=4),
                Reserved(round_number=1, event=EVENT.times(6), checkpoint_steps=4),
            )
            assert total(account.events) == 4 + 4 + 6

    def test_is_counted_in_the_same_process(self, tmp_path):
        with opened(tmp_path) as account:
            assert begin(account, None) == 0
            assert begin(account, None) == 0
            assert total(account.events) == 4 + 10

    def test_the_interval_is_that_of_the_interrupted_process(self, tmp_path):
        with opened(tmp_path) as account:
            begin(account, None, checkpoint_steps=7)
        with opened(tmp_path) as account:
            begin(account, None, checkpoint_steps=1)
            assert account.ledger.entries[-2] == Interrupted(round_number=1, steps=7)

    def test_all_steps_were_done(self, tmp_path):
        with opened(tmp_path) as account:
            begin(account, None, checkpoint_steps=10)
            account.take(10)
            partial = saved(account, 10)
        with opened(tmp_path) as account:
            assert begin(account, partial) == 10
            account.close_round(1)
            assert begin(account, partial) == 10
            assert total(account.events) == 10

    def test_an_interrupted_round_that_nobody_asks_for_again(self, tmp_path):
        with opened(tmp_path) as account:
            begin(account, None)
            account.take(4)
            partial = saved(account, 4)
        with opened(tmp_path) as account:
            assert begin(account, partial, round_number=2) == 0
            assert kinds(account)[-3:] == ["interrupted", "closed", "reserved"]
            assert total(account.events) == 8 + 10
            account.abandon()
            account.abandon()
            assert kinds(account)[-2:] == ["interrupted", "closed"]
            assert total(account.events) == 12

    def test_the_rest_must_fit_the_limits_again(self, tmp_path, by_steps):
        with opened(tmp_path, run_budget=steps_budget(13)) as account:
            begin(account, None)
            account.take(4)
            partial = saved(account, 4)
        with opened(tmp_path, run_budget=steps_budget(13)) as account:
            with pytest.raises(BudgetExceeded, match=r"6 steps.*from 8 to 14"):
                begin(account, partial)
            assert kinds(account)[-1] == "interrupted"
            with pytest.raises(BudgetExceeded, match=r"6 steps.*from 8 to 14"):
                begin(account, partial)  # Counted once.
        with opened(tmp_path, run_budget=steps_budget(14)) as account:
            assert begin(account, partial) == 4

    @pytest.mark.parametrize("kept", [2, 3])
    def test_a_ledger_of_an_old_backup(self, tmp_path, kept):
        with opened(tmp_path) as account:
            begin(account, None)
            account.take(4)
            account.take(4)
            partial = saved(account, 8)
        path = tmp_path / "run" / "ledger.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:kept]))
        before = load_secret(path)
        with opened(tmp_path) as account, pytest.raises(LedgerBroken, match="older"):
            begin(account, partial)
        assert load_secret(path) == before

    @pytest.mark.parametrize("step", [0, 4])
    def test_a_checkpoint_of_an_old_backup(self, tmp_path, step):
        with opened(tmp_path) as account:
            begin(account, None)
            account.take(4)
            partial = saved(account, 4) if step else None
            account.take(4)
            if step:
                account.take(2)
            before = account.head
        with opened(tmp_path) as account:
            with pytest.raises(CheckpointOutdated, match="missing or older"):
                begin(account, partial)
            assert account.head == before

    def test_the_checkpoint_of_another_plan(self, tmp_path):
        with opened(tmp_path) as account:
            begin(account, None)
            account.take(4)
            with pytest.raises(SiloError, match="step 11 of 10"):
                begin(account, saved(account, 11))

    def test_a_head_that_another_party_kept(self, tmp_path):
        with opened(tmp_path) as account:
            begin(account, None)
            head = account.head
            account.take(4)
            assert account.ledger.contains(head)
            assert not account.ledger.contains(LedgerHead(size=9, digest=head.digest))
