"""PLUME: universal multimodal embeddings through latent reasoning.

Importing this package registers the model with transformers, so that ``AutoModel``, ``AutoProcessor`` and
``SentenceTransformer`` load PLUME checkpoints without ``trust_remote_code``. The public names are in ``public.py``.
Without torch, :mod:`plume.runtime` runs exported models, and public names are refused when they are used.
"""

# The repository root is this package. Tools that import the root under the folder's name (pytest, for one) must
# not load a second copy of the classes.
if __name__ == "plume":
    import sys
    from importlib import import_module
    from importlib.util import find_spec
    from pathlib import PurePath
    from typing import TYPE_CHECKING, Any

    __version__ = "0.2.0"

    def _is_command_line() -> bool:
        """Whether this process is ``plume ...`` or ``python -m plume ...``, which shall answer before torch is loaded.

        ``orig_argv`` has the script or, after ``-m``, the module before the arguments.
        """
        program = sys.orig_argv[-len(sys.argv)] if 0 < len(sys.argv) <= len(sys.orig_argv) else ""
        return PurePath(program).stem == "plume"

    if TYPE_CHECKING or (find_spec("torch") and not _is_command_line()):
        from .public import *  # noqa: F403
    else:

        def __getattr__(name: str) -> Any:
            if name.startswith("__"):  # asked for by importlib, never public
                raise AttributeError(name)
            try:
                public = vars(import_module("plume.public"))
            except ModuleNotFoundError as error:
                if error.name not in ("torch", "transformers"):
                    raise
                raise ImportError(
                    f"plume.{name} needs {error.name}, which is not installed: pip install 'plume-embedding[torch]'. "
                    "Exported models run without it: plume.runtime.Runtime."
                ) from error
            if name not in public["__all__"]:
                raise AttributeError(f"module 'plume' has no attribute {name!r}")
            return public[name]
