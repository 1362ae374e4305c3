"""The tables of speed and memory on measurements.md."""

from __future__ import annotations

from collections.abc import Callable

from measuring.rows import ATTACKS, Row, as_table, fitting, rows

MODELS = {"wrn-16-1": "WRN-16-1", "preactresnet-18": "PreActResNet-18"}
MACHINES = {
    "speed": "two cores with AMX",
    "speed_avx512_bf16": "two cores with AVX512-BF16",
    "speed_h100": "H100, sixteen cores",
}
RIVALS = {
    "stage 1": ("ART ProjectedGradientDescent", "torchattacks", "bare loop"),
    "epoch": ("ART fit", None, "bare loop"),
}


def ratios() -> str:
    """Return how many times as fast Stage 1 and an epoch are as elsewhere."""
    lines = []
    for what, rivals in RIVALS.items():
        for model, title in MODELS.items():
            for file, machine in MACHINES.items():
                own = {row["than"]: row for row in fitting(file, {"what": what, "model": model})}
                cells = (f"{own[than]['times_as_fast']:.2f}" if than else "" for than in rivals)
                kind = "Stage 1" if what == "stage 1" else "epoch of fine-tuning"
                lines.append([f"{kind}, {title}", machine, *cells])
    return as_table(["", "on", "than ART as it comes", "than torchattacks", "than a bare loop"], lines)


def defences() -> str:
    """Return how long whole defences take."""
    found = {file: {row["than"]: row for row in fitting(file, {"what": "defence"})} for file in FILES}
    first = found[FILES[0]]
    lines = []
    for name in first:
        title, comma, preset = name.partition(", preset ")
        code = f"`{title}`" if not title.startswith("ART") else title
        own = [found[file].get(name) for file in FILES]
        cells = [cell for row in own for cell in (described(row) if row else ["", ""])]
        lines.append([f'{code}, "{preset}"' if comma else code, *cells])
    return as_table(["", "two cores: seconds", "MiB", "H100: seconds", "MiB"], lines)


FILES = ("speed", "speed_h100_defences")


def described(row: Row) -> list[str]:
    """Return the seconds and the memory of a run."""
    return [f"{row['seconds']:.1f}" if row["seconds"] < 10 else f"{row['seconds']:.0f}", str(row["peak_mebibytes"])]


def precision() -> str:
    """Return what bfloat16 changes."""
    lines = []
    for row in fitting("speed", {"what": "precision"}):
        scores = f"{100 * row['acc']:.1f} / {100 * row['asr']:.1f}"
        lines.append([row["precision"], str(row["seed"]), scores, f"{row['seconds']:.0f}"])
    return as_table(["", "seed", "ACC / ASR of `aft`", "seconds"], lines)


def memory() -> str:
    """Return how much memory AFT needs beyond the idle process."""
    lines = []
    for row in fitting("speed", {"what": "size"}):
        size = f"{row['side']}x{row['side']}"
        network = MODELS.get(row["model"], "ResNet-18")
        lines.append([network, row["from"], f"{row['images']:,}", size, f"{row['peak_mebibytes']:,}"])
    return as_table(["network", "images from", "images", "size", "MiB"], lines)


def compiling() -> str:
    """Return what `torch.compile` gains."""
    lines = []
    for row in rows("compiling"):
        pays = row["pays_after_images"]
        won = f"{pays:,}" if pays else "never"
        cells = [f"{row['compile_seconds']:.0f}", f"{row['times_as_fast']:.2f}", won]
        lines.append([MODELS[row["model"]], row["step"], *cells])
    return as_table(["", "step", "seconds to compile", "times as fast", "images until that is won back"], lines)


def short(number: float) -> str:
    """Return a number with about three digits."""
    return f"{number:.4f}" if number < 0.1 else f"{number:.2f}" if number < 100 else f"{number:,.0f}"


def stamping() -> str:
    """Return how long triggers take."""
    others = {"art add_pattern_bd": "ART's `add_pattern_bd`", "copy": "a copy of the batch"}
    lines = []
    for trigger, title in {**ATTACKS, **others}.items():
        own = {row["than"]: row["times_as_long"] for row in fitting("stamping", {"trigger": trigger, "images": 128})}
        cells = (short(own[than]) if than in own else "" for than in ("copy", "insert_image", "grid_sample"))
        lines.append([title, *cells])
    return as_table(["times as long as", "a copy", "ART's `insert_image`", "torch's `grid_sample`"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "speed": ratios,
    "speed_defences": defences,
    "precision": precision,
    "memory": memory,
    "compiling": compiling,
    "stamping": stamping,
}
