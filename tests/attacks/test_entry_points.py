"""Another package adds a trigger by an entry point."""

import numpy as np

from art_aft.attacks import TRIGGERS
from art_aft.attacks.labels import AllToOne
from art_aft.attacks.poisoning import poison

CODE = """
import numpy as np

from art_aft.attacks import Trigger


class Corner(Trigger):
    def _stamp(self, x, out):
        np.copyto(out, x)
        out[:, :, 0, 0] = self.clip_values[1]
        return False
"""


def test_an_installed_package_registers_its_trigger_and_one_that_cannot_be_loaded_takes_nothing_with_it(
    installed, caplog
):
    installed(TRIGGERS, "corner_package", CODE, "broken = corner_package:Missing", "corner = corner_package:Corner")
    assert {"badnets", "corner"} <= set(TRIGGERS)
    assert "broken" not in TRIGGERS
    result = poison(np.zeros((4, 1, 3, 3)), np.arange(4), TRIGGERS["corner"](), AllToOne(2), rate=1.0, seed=0)
    assert result.x.reshape(4, 9).tolist() == [[1.0] + [0.0] * 8] * 4
    assert result.y.tolist() == [2] * 4
    assert "attack 'broken' of corner_package:Missing cannot be loaded" in caplog.text
