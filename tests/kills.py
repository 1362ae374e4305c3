"""
Kill commands at random moments, run each again to the end, and compare what is there with an uninterrupted run.

`make kills` runs it; it is no part of the suite. Moments are drawn over the processor time that a command takes, so
that a busy machine does not move them. Others lie just before a file is moved to its place. Every run is a fork of
this process, which has imported all that is slow: importing writes nothing. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before torch is imported: sums of several threads round otherwise, and threads are lost in a fork.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
from helpers import die_before_move

from art_aft.cli.main import main as art_aft
from art_aft.data.datasets import digits

VICTIM = "--attack badnets --model wrn-10-1 --recipe digits --clean-share 0.1 --epochs 3 --store store --quiet"
COMMANDS = {
    "train": f"train {VICTIM} --rows rows.json",
    "purify": "purify ../victim --data ../clean.npz --output out/model --quiet --max-accuracy-drop 1 --defence aft "
    "--set nb_epochs=1 attack={'max_iter':2}",
    "compare": f"compare {VICTIM} --rows rows.json --defences fine_tuning fine_pruning --learning-rates 0.05 "
    "--set nb_epochs=1",
    "reproduce": "reproduce table9 fig6 --attacks badnets --scale smoke --store store --output out --quiet",
}
#: The exit code of a command that was refused.
WRONG = 2
FORK = multiprocessing.get_context("fork")


class Run:
    """
    A command in a process of its own, in a folder of its own.

    :param words: The words after `art-aft`.
    :param place: The folder. It is made.
    :param last_move: The process dies in place of moving its file number `last_move` (from 1). 0 is never.
    """

    def __init__(self, words: list[str], place: Path, last_move: int = 0) -> None:
        self.words, self.place, self.last_move = words, place, last_move
        self.moves = FORK.Value("i", 0)
        self.process = FORK.Process(target=self._work)
        self.process.start()

    def _work(self) -> None:
        # What is left in a folder for temporary files is left in the end.
        (self.place / "temporary").mkdir(parents=True, exist_ok=True)
        os.chdir(self.place)
        tempfile.tempdir = str(self.place / "temporary")
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        die_before_move(self.last_move, self.moves)
        sys.exit(art_aft(self.words))

    @property
    def log(self) -> Path:
        return self.place.with_name(f"{self.place.name}.log")

    def seconds(self) -> float:
        """Return the processor time that was taken."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # Linux: the clock of another process

    def wait(self) -> float:
        """Return the processor time that was taken when the run ended."""
        taken = 0.0
        with suppress(OSError):  # it has ended
            while self.process.is_alive():
                taken = self.seconds()
                time.sleep(0.002)
        self.process.join()
        return taken

    def kill(self, moment: float) -> None:
        """Kill the process as soon as it has taken so many seconds of processor time."""
        with suppress(OSError):
            while self.process.is_alive() and self.seconds() < moment:
                time.sleep(0.002)
        self.process.kill()
        self.process.join()


def results(place: Path) -> dict[str, Any]:
    """
    Return all files of a folder: JSON without times and memory, of a page for people, which has both, whether it is
    whole, and the bytes of others.
    """
    found = {str(file.relative_to(place)): file for file in sorted(place.rglob("*"))}
    return {name: _content(file) for name, file in found.items() if file.is_file()}


def _content(file: Path) -> Any:
    if file.suffix == ".json":
        return _settled(json.loads(file.read_text()))
    return file.read_text().endswith("</html>\n") if file.suffix == ".html" else file.read_bytes()


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _settled(part) for key, part in value.items() if key != "peak_memory" and "seconds" not in key}
    return [_settled(part) for part in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return which files are missing, too many or different."""
    names = sorted({*found, *expected})
    return [
        f"{name}: " + ("missing" if name not in found else "too many" if name not in expected else "different")
        for name in names
        if name not in found or name not in expected or found[name] != expected[name]
    ]


def prepare(folder: Path) -> None:
    """Make the victim that is purified, and the clean images for it."""
    data = digits(seed=0)
    np.savez(folder / "clean.npz", x=data.x_test[:100], y=data.y_test[:100])
    run = Run(COMMANDS["train"].split(), folder / "victim")
    run.wait()
    for ending in (".json", ".safetensors"):
        next((folder / "victim" / "store").glob(f"*{ending}")).rename(folder / f"victim{ending}")


def finish(words: list[str], place: Path, counts: Counter[str]) -> list[str]:
    """Run a command again to the end; return what went wrong."""
    run = Run(words, place)
    run.wait()
    if run.process.exitcode == WRONG and "--force" in run.log.read_text():
        counts["refused without --force"] += 1
        run = Run([*words, "--force"], place)
        run.wait()
    code = run.process.exitcode
    return [f"exit code {code}: {run.log.read_text().strip()[-300:]}"] if code else []


def try_command(name: str, kills: int, moves: int, rng: np.random.Generator, folder: Path) -> int:
    """Kill a command `kills` times at random moments and `moves` times at moves; print and return the failures."""
    words, whole = COMMANDS[name].split(), folder / f"{name}-whole"
    run = Run(words, whole)
    seconds = run.wait()
    expected = results(whole)
    assert run.process.exitcode == 0, run.log.read_text()
    tries = [(moment, 0) for moment in rng.uniform(0, seconds, kills)]
    last = min(moves, run.moves.value)
    tries += [(0.0, 1 + int(move)) for move in rng.choice(run.moves.value, last, replace=False)]
    print(f"{name}: {seconds:.1f} s, {run.moves.value} moves of files", flush=True)
    counts: Counter[str] = Counter()
    for number, (moment, move) in enumerate(tries):
        place = folder / f"{name}-{number}"
        killed = Run(words, place, move)
        killed.wait() if move else killed.kill(moment)
        counts["killed" if killed.process.exitcode == -signal.SIGKILL else "ended before"] += 1
        left = [file.name for file in place.rglob("*") if file.is_file()]
        counts["left a temporary file"] += any(file.endswith(".part") for file in left)
        wrong = finish(words, place, counts) or differences(results(place), expected)
        if wrong:
            counts["failed"] += 1
            when = f"before move {move}" if move else f"at {moment:.2f} s"
            print(f"{name}, killed {when}: {'; '.join(wrong)} ({place})", flush=True)
        else:
            shutil.rmtree(place)
    print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()), flush=True)
    return counts["failed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"which of: {', '.join(COMMANDS)} (all)")
    parser.add_argument("--kills", type=int, default=50, help="moments in time, in all (default: %(default)s)")
    parser.add_argument("--moves", type=int, default=3, help="moves of files, each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.commands or list(COMMANDS)
    rng, folder, failed = np.random.default_rng(given.seed), Path(tempfile.mkdtemp(prefix="kills-")), 0
    prepare(folder)
    for number, name in enumerate(names):
        share = given.kills // len(names) + (number < given.kills % len(names))
        failed += try_command(name, share, given.moves, rng, folder)
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
