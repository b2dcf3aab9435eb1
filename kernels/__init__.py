"""Kernels that turn an image transformer into a video one; usable without any other part of m2clip."""

if __name__ == "kernels":
    # A checkout on sys.path is no package of this name. Another one there is loaded in place of this folder; without
    # one the name is an empty namespace package, which is what Python makes of any folder that is no package.
    import sys
    from importlib.machinery import ModuleSpec, PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _root = Path(__file__).resolve().parent.parent
    # Another checkout that is found next passes over this one too.
    _path = [entry for entry in __spec__.loader_state or sys.path if Path(entry).resolve() != _root]
    _found = PathFinder.find_spec(__name__, _path) or ModuleSpec(__name__, None, is_package=True)
    _found.loader_state = _path
    _module = sys.modules[__name__] = module_from_spec(_found)
    if _found.loader is not None:
        _found.loader.exec_module(_module)
else:
    from .dispatch import BACKENDS, BackendState, Choice, backend_states, explain, use_backend
    from .operands import BranchWeights, MSTAWeights, TEDWeights, TimeLayout
    from .ops.bottleneck import bottleneck_adapter
    from .ops.gelu import bias_gelu
    from .ops.losses import cosine_cross_entropy, soft_target_kl
    from .ops.masked_words import masked_word_loss
    from .ops.msta import msta_adapter
    from .ops.ted import patch_grid, ted_adapter
    from .preparation import prepare
    from .verification.choices import choices
    from .verification.keys import Call

    __all__ = [
        "BACKENDS",
        "BackendState",
        "BranchWeights",
        "Call",
        "Choice",
        "MSTAWeights",
        "TEDWeights",
        "TimeLayout",
        "backend_states",
        "bias_gelu",
        "bottleneck_adapter",
        "choices",
        "cosine_cross_entropy",
        "explain",
        "masked_word_loss",
        "msta_adapter",
        "patch_grid",
        "prepare",
        "soft_target_kl",
        "ted_adapter",
        "use_backend",
    ]

    def __dir__() -> list[str]:
        return sorted(__all__)
