"""Remove backdoors from image classifiers with Adversarial Fine-Tuning, inside the Adversarial Robustness Toolbox."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from art_aft.public import *  # noqa: F403
else:
    # Only when a name is asked for: what fails in ART or PyTorch must not fail before `art-aft` can tell of it.
    def __getattr__(name: str) -> Any:
        """Return a public name, or a room of the package."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module("art_aft.public")
        found = globals() if name in globals() else vars(public)  # the former has the rooms
        if name not in found:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return found[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("art_aft.public").__all__})
