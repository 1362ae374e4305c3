"""Another package adds a trigger by an entry point."""

import os
import subprocess
import sys

MODULE = """
import numpy as np

from art_aft.attacks import Trigger


class Corner(Trigger):
    def _stamp(self, x, out):
        np.copyto(out, x)
        out[:, :, 0, 0] = self.clip_values[1]
        return False
"""

PROGRAM = """
import numpy as np

from art_aft.attacks import TRIGGERS
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison

assert {"badnets", "corner"} <= set(TRIGGERS)
assert "broken" not in TRIGGERS
result = poison(np.zeros((4, 1, 3, 3)), np.arange(4), TRIGGERS["corner"](), AllToOne(2), rate=1.0, seed=0)
print(result.x.reshape(4, 9).tolist(), result.y.tolist())
"""


def test_an_installed_package_registers_its_trigger_and_one_that_cannot_be_loaded_takes_nothing_with_it(tmp_path):
    # What pip would write: the module, and the package's metadata with its entry points.
    (tmp_path / "corner_package.py").write_text(MODULE)
    info = tmp_path / "corner_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corner-package\nVersion: 1.0\n")
    entries = "[art_aft.attacks]\nbroken = corner_package:Missing\ncorner = corner_package:Corner\n"
    (info / "entry_points.txt").write_text(entries)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == f"{[[1.0] + [0.0] * 8] * 4} {[2] * 4}", done.stderr
    assert "attack 'broken' of corner_package:Missing cannot be loaded" in done.stderr
