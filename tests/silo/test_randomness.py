import copy
import multiprocessing
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from randomgen import AESCounter
from scipy import stats

import silo.randomness
from silo.randomness import BLOCK_VALUES, PrivateRandom


class TestGenerator:
    def test_the_bits_are_those_of_aes(self):
        key, start = bytes(range(16)), (1 << 64) - 1
        bits = AESCounter(key=int.from_bytes(key, "little"), counter=start)
        aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        blocks = b"".join(
            aes.update((start + i).to_bytes(16, "little")) for i in range(5)
        )
        assert bits.random_raw(10).astype("<u8").tobytes() == blocks

    def test_key_and_counter_are_what_the_operating_system_gives(self, monkeypatch):
        given = [bytes(range(16)), bytes(range(16, 32))]
        monkeypatch.setattr(silo.randomness.os, "urandom", lambda n: given.pop(0)[:n])
        random = PrivateRandom()
        state = random._values.bit_generator.state["s"]
        key = state["seed"][:2].astype("<u8").tobytes()
        assert key == bytes(range(16))
        assert given == []
        assert random.is_secure

    def test_no_two_are_alike(self):
        drawn = {PrivateRandom().torch_seed() for _ in range(8)}
        assert len(drawn) == 8

    def test_a_debugging_seed_repeats_and_says_so(self):
        first, second = PrivateRandom(5), PrivateRandom(5)
        assert first.torch_seed() == second.torch_seed()
        assert first.torch_seed() != PrivateRandom(6).torch_seed()
        assert not first.is_secure
        assert PrivateRandom(0).is_secure is False

    @pytest.mark.parametrize(
        "duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__
    )
    def test_it_cannot_be_copied(self, duplicate):
        with pytest.raises(TypeError, match="cannot be copied"):
            duplicate(PrivateRandom())

    def test_a_forked_child_is_refused(self):
        random = PrivateRandom()
        told, tell = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")

        def child():
            outcomes = []
            uses = (
                random.torch_seed,
                lambda: random.poisson_sample(3, 0.5),
                lambda: random.choose(3, 2),
                lambda: random.normal_(np.empty(3)),
                lambda: random.add_noise_(np.zeros(3), 1.0),
                lambda: PrivateRandom().torch_seed(),
            )
            for use in uses:
                try:
                    use()
                    outcomes.append("drawn")
                except RuntimeError as error:
                    outcomes.append(str(error)[:17])
            tell.send(outcomes)

        process = context.Process(target=child)
        process.start()
        process.join()
        assert told.recv() == ["secret randomness"] * 5 + ["drawn"]
        random.torch_seed()


class TestPoissonSample:
    @pytest.mark.parametrize("rate", [0.01, 0.3, 0.999])
    def test_each_unit_has_exactly_the_rate(self, rate):
        random = PrivateRandom(1)
        counts = np.zeros(40, dtype=int)
        sizes = []
        for _ in range(4000):
            drawn = random.poisson_sample(40, rate)
            assert (np.diff(drawn) > 0).all()
            counts[drawn] += 1
            sizes.append(len(drawn))
        chi2 = ((counts - 4000 * rate) ** 2 / (4000 * rate * (1 - rate))).sum()
        assert stats.chi2(40).sf(chi2) > 1e-4
        # The law of the size is binomial; a fixed size would have variance 0.
        variance = 40 * rate * (1 - rate)
        assert np.var(sizes) == pytest.approx(variance, rel=0.15)

    def test_units_are_independent(self):
        random = PrivateRandom(2)
        both = sum(len(random.poisson_sample(2, 0.5)) == 2 for _ in range(4000))
        assert both == pytest.approx(1000, abs=140)

    def test_the_ends(self):
        random = PrivateRandom()
        assert random.poisson_sample(1000, 1.0).tolist() == list(range(1000))
        assert random.poisson_sample(1000, 0.0).tolist() == []
        assert random.poisson_sample(0, 0.5).tolist() == []
        assert random.poisson_sample(9, 0.5).dtype == np.int64

    @pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
    def test_a_rate_out_of_range_is_refused(self, rate):
        with pytest.raises(ValueError, match="rate"):
            PrivateRandom().poisson_sample(3, rate)


class TestChoose:
    def test_all_subsets_are_equally_likely(self):
        random = PrivateRandom(3)
        counts = {}
        for _ in range(3000):
            subset = tuple(sorted(random.choose(5, 2)))
            counts[subset] = counts.get(subset, 0) + 1
        assert len(counts) == 10
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4

    def test_all_of_them(self):
        assert sorted(PrivateRandom().choose(4, 4)) == [0, 1, 2, 3]
        with pytest.raises(ValueError):
            PrivateRandom().choose(3, 4)


class TestNormal:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_the_law_is_normal(self, dtype):
        out = np.empty((3, BLOCK_VALUES - 5), dtype=dtype)
        PrivateRandom(4).normal_(out)
        assert stats.kstest(out.ravel(), "norm").pvalue > 1e-3
        assert out.var() == pytest.approx(1.0, rel=0.03)
        for wrong in (1.1, 0.9):
            assert stats.kstest(out.ravel() * wrong, "norm").pvalue < 1e-6

    def test_values_are_not_alike_between_blocks(self):
        out = np.empty(2 * BLOCK_VALUES)
        PrivateRandom().normal_(out)
        assert len(np.unique(out)) == out.size

    def test_each_is_the_sum_of_four_halved(self):
        out, alone = np.empty(3), PrivateRandom(5)._values.standard_normal(12)
        PrivateRandom(5).normal_(out)
        assert out == pytest.approx(alone.reshape(4, 3).sum(axis=0) / 2)

    def test_noise_is_added(self):
        values = np.arange(6.0).reshape(2, 3)
        normals = np.empty((2, 3))
        PrivateRandom(6).normal_(normals)
        PrivateRandom(6).add_noise_(values, 2.5)
        assert values == pytest.approx(np.arange(6.0).reshape(2, 3) + 2.5 * normals)

    def test_no_noise_and_no_values(self):
        random, values = PrivateRandom(7), np.ones(3)
        random.add_noise_(values, 0.0)
        random.add_noise_(np.empty(0), 1.0)
        assert values.tolist() == [1, 1, 1]

    @pytest.mark.parametrize("stddev", [-1.0, float("nan"), float("inf")])
    def test_a_wrong_deviation_is_refused(self, stddev):
        with pytest.raises(ValueError, match="noise_stddev"):
            PrivateRandom().add_noise_(np.zeros(3), stddev)

    def test_what_cannot_be_filled_is_refused(self):
        for wrong in (np.zeros((4, 4))[:, ::2], np.zeros(3, dtype=np.float16)):
            with pytest.raises(ValueError, match="contiguous"):
                PrivateRandom().normal_(wrong)
