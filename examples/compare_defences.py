"""Five defences against one backdoor in a digit classifier: the same data, the same number of settings tried."""

import argparse
import json
from functools import partial

from art_aft.defences import DEFENCES
from art_aft.experiments.compare import TUNABLE, compare
from art_aft.experiments.victims import VictimSettings, train_victim
from art_aft.training.recipes import RECIPES

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--attack", default="blend", help="badnets, blend, sig or wanet (default: %(default)s)")
parser.add_argument("--smoke", action="store_true", help="only show that it runs")
parser.add_argument("--output", default="compare_defences.json", help="where the rows go (default: %(default)s)")
options = parser.parse_args()

victim = train_victim(VictimSettings(attack=options.attack, recipe=RECIPES["digits"]))
# A flipped digit is no digit; these images are too small to be cropped at random by more than a pixel.
tuning = {"batch_size": 32, "padding": 0, "horizontal_flip": False, **({"nb_epochs": 1} if options.smoke else {})}
search = {"steps": 3} if options.smoke else {"steps": 100}
rows = compare(
    victim.classifier,
    {name: partial(DEFENCES[name], **tuning, **(search if name == "neural_cleanse" else {})) for name in TUNABLE},
    victim.x_clean,
    victim.y_clean,
    victim.dataset.x_test,
    victim.dataset.y_test,
    victim.attack,
    victim.labels,
    learning_rates=(0.01, 0.02, 0.05),
)
for row in rows:
    shares = "  ".join(f"{key.upper()} {100 * row[key]:5.1f}" for key in ("acc", "asr", "ra", "der"))
    rate = row.get("settings", {}).get("learning_rate", "")
    print(f"{row['defence']:<16} {shares}  {row.get('seconds', 0):6.1f} s  learning rate {rate}")
with open(options.output, "w", encoding="utf-8") as file:
    json.dump(rows, file, indent=2)
