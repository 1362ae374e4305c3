"""Two processes under torchrun have the result of one, and none waits for a dead one."""

import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes_worker
import pytest
import torch
from helpers import assert_backdoor_removed, same_weights, tiny_classifier, tiny_data, train, untouched

from art_aft.data.loaders import batch_sizes
from art_aft.runtime.processes import World, across_processes, check_same, exchange, from_first, number_of_first, world
from art_aft.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(nb_epochs=1, batch_size=8, precision="float32")


def torchrun(*arguments, **settings):
    """Start two processes on the CPU, on a port that is free."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=500, env=environment, **settings
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The results of one process."""
    return processes_worker.results(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of each of two processes, in one launch."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(processes_worker.__file__, "main", folder)
    assert done.returncode == 0, done.stderr[-5000:]
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in (0, 1)]


def of_case(found, case):
    return {name: value for name, value in found.items() if name.startswith(f"{case}/")}


class TestTwoProcesses:
    @pytest.mark.parametrize("case", processes_worker.CASES)
    def test_come_to_the_result_of_one(self, one, two, case):
        expected = of_case(one, case)
        # bfloat16 with another batch of a half rounds otherwise; as far from float32 as one process's bfloat16 is.
        tolerance = 0.03 if case == "bfloat16" else 1e-4
        assert expected
        for name, value in expected.items():
            np.testing.assert_allclose(two[0][name], value, rtol=0, atol=tolerance, err_msg=name)

    @pytest.mark.parametrize("case", processes_worker.CASES)
    def test_have_the_same_result_bit_for_bit(self, two, case):
        for name, value in of_case(two[0], case).items():
            np.testing.assert_array_equal(two[1][name], value, err_msg=name)

    def test_lose_and_double_no_image(self, two):
        first, second = (found["images"] for found in two)
        assert len(first) == len(second) == 6  # two epochs of 8, 8 and 7 images
        for epoch in (slice(0, 3), slice(3, 6)):
            seen = np.concatenate([first[epoch], second[epoch]]).ravel()
            assert sorted(seen[seen >= 0]) == list(range(processes_worker.N))
        sizes = [(found["images"] >= 0).sum(axis=1).tolist() for found in two]
        assert sizes == [[4, 4, 3] * 2, [4, 4, 4] * 2]

    def test_take_the_batches_that_one_process_takes(self, one, two):
        for together, first, second in zip(one["images"], two[0]["images"], two[1]["images"], strict=True):
            assert [n for n in [*first, *second] if n >= 0] == [n for n in together if n >= 0]

    def test_start_at_random_points_of_their_own(self, two):
        examples = two[0]["random starts"]  # of the same image, one made in each process
        assert np.abs(examples[0] - examples[1]).max() > 1e-3
        np.testing.assert_array_equal(examples, two[1]["random starts"])

    def test_refuse_different_data(self, two):
        for found in two:
            messages = found["errors"].tolist()
            assert [re.split(":", message)[0] for message in messages] == [
                "y",
                "x",
                "settings",
                "batch_size",
                "checkpoint",
            ]
            assert messages[0] == "y: got others in one process than in another, expected the same in all"
            assert messages[3] == "batch_size: got 8 with 1 images, expected an image for each of 2 processes"

    def test_train_alone_again_afterwards(self, one, two):
        for found in two:
            for name, value in of_case(found, "alone").items():
                # Not bit for bit: this process may have more threads than those.
                expected = one[name.replace("alone/", "fit/")]
                np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4, err_msg=name)


def test_a_dying_process_ends_the_others_with_an_error(tmp_path):
    done = torchrun(processes_worker.__file__, "die", tmp_path)
    assert done.returncode != 0
    # The survivor, which ignores torchrun's signal, learnt it from the broken connection, in the step that it was in.
    assert re.match(r"4 .*(closed|reset|refused|recv|peer)", (tmp_path / "error.txt").read_text(), re.I | re.S)


@pytest.fixture
def torchrun_of_one(monkeypatch):
    """Have this process look like the only one that torchrun has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))


def test_the_example_is_short_and_removes_its_backdoor(torchrun_of_one, capsys):
    """In one process, whose result that of two is; see above."""
    script = ROOT / "examples" / "several_processes.py"
    assert len(script.read_text().splitlines()) < 40
    with torch.random.fork_rng():
        runpy.run_path(str(script), run_name="__main__")
    assert_backdoor_removed(capsys.readouterr().out)
    assert not torch.distributed.is_initialized()


class TestWorld:
    def test_is_one_process_outside_also_under_torchrun(self, monkeypatch):
        assert world() == World(0, 1)
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert world() == World(0, 1)
        array = np.arange(3.0)
        exchange(array, torch.device("cpu"))
        from_first([torch.zeros(1)])
        check_same(torch.device("cpu"), x=array)
        assert number_of_first(0.5, torch.device("cpu")) == 0.5
        assert array.tolist() == [0, 1, 2]

    @pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 100])
    @pytest.mark.parametrize("size", [1, 2, 3, 8])
    def test_parts_join_to_the_whole_and_are_almost_equal(self, n, size):
        parts = [World(rank, size).part(n) for rank in range(size)]
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1

    def test_seeds_are_of_each_process_own_and_the_first_keeps_the_given_one(self):
        seeds = [World(rank, 4).seed(7) for rank in range(4)]
        assert seeds[0] == 7
        assert len(set(seeds)) == 4
        assert seeds == [World(rank, 4).seed(7) for rank in range(4)]


class TestAcrossProcesses:
    def test_outside_torchrun_says_what_is_missing(self, monkeypatch):
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        message = r"^across_processes: got no process group and no RANK, WORLD_SIZE, .* torchrun"
        with pytest.raises(RuntimeError, match=message), across_processes():
            pass
        assert world() == World()

    @pytest.mark.parametrize("timeout", [0, -1.0])
    def test_a_timeout_is_above_zero(self, timeout):
        with pytest.raises(ValueError, match=r"^timeout: got"), across_processes(timeout=timeout):
            pass

    def test_an_error_inside_comes_out_and_the_group_is_gone(self, torchrun_of_one):
        def failing():
            with across_processes(timeout=60):
                assert torch.distributed.is_initialized()
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            failing()
        assert not torch.distributed.is_initialized()
        assert world() == World()

    def test_a_group_that_was_there_stays_and_one_process_trains_as_ever(self, tmp_path):
        x, y = tiny_data()
        alone, member, other = (tiny_classifier(dropout=0.5) for _ in range(3))
        train(alone, x, y, RECIPE)
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            with across_processes() as here, untouched(other):
                assert here == World(0, 1)
                train(member, x, y, RECIPE)
            assert torch.distributed.is_initialized()
        finally:
            torch.distributed.destroy_process_group()
        assert same_weights(alone, member)


def test_a_last_batch_with_fewer_images_than_processes_joins_the_one_before():
    assert batch_sizes(19, 8, 4) == [8, 11]
    assert batch_sizes(20, 8, 4) == [8, 8, 4]
    assert batch_sizes(3, 8, 4) == [3]
    assert batch_sizes(9, 4, 4) == [4, 5]
    for n in range(1, 40):
        for batch_size in range(1, 12):
            assert batch_sizes(n, batch_size, 2) == batch_sizes(n, batch_size)
