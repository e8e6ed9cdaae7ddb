"""Components of a loaded pipeline that stay on disk until they are asked for.

Where the draft writes alone nothing of the language model is needed: neither it nor its tokenizers are read, but for
whoever asks for them (``pipe.autoencoder``, ``pipe(writer="lm")``). Until then they are copied, when the pipeline is
saved, and otherwise passed over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .checkpoint_safety import INDEX, check_digests, read_index
from .errors import DamagedPipelineError


# One for all pipelines: a lock of a pipeline's own could be neither pickled nor copied.
_LOADING = threading.RLock()


@dataclass
class DeferredComponent:
    """What will be loaded.

    Attributes
    ----------
    cls : type
        With ``from_pretrained``.
    folder : Path
        The saved pipeline that it is a part of.
    name : str
        Of the component and of its folder.
    entry : tuple of str
        Library and class, as diffusers registers it.
    digests : dict
        Its weight files and their SHA-256, as they were when the pipeline was loaded.
    options : dict
        Of ``from_pretrained``.
    """

    cls: Any
    folder: Path
    name: str
    entry: tuple[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise DamagedPipelineError unless the files are there, are safe to load, and are still the same."""
        if not (self.folder / self.name).is_dir() or not (self.folder / INDEX).is_file():
            raise DamagedPipelineError(
                f"{self.folder / self.name} is gone, and was to be loaded on first use: copy or download the pipeline "
                "anew."
            )
        read_index(self.folder)
        check_digests(self.folder, self.digests)

    def load(self) -> Any:
        """Read it."""
        self.check()
        return self.cls.from_pretrained(self.folder / self.name, **self.options)


class DeferredComponentsMixin:
    """A pipeline whose components may be [`DeferredComponent`]; they are absent until they are asked for."""

    #: diffusers' __setattr__ leaves this alone: it is no entry of the config.
    _deferred: dict[str, DeferredComponent]

    def register_components(self: Any, **components: Any) -> None:
        """diffusers' ``register_modules``, for components that may be deferred."""
        self._deferred = {name: c for name, c in components.items() if isinstance(c, DeferredComponent)}
        self.register_modules(**{name: c for name, c in components.items() if name not in self._deferred})
        self.register_to_config(**{name: component.entry for name, component in self._deferred.items()})

    def deferred(self) -> dict[str, DeferredComponent]:
        """The components that are not loaded, by name."""
        return {name: c for name, c in self.__dict__.get("_deferred", {}).items() if name not in self.__dict__}

    def component_class(self, name: str) -> type:
        """The class of a component, which is not loaded for this."""
        deferred = self.deferred()
        return deferred[name].cls if name in deferred else type(getattr(self, name))

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("_deferred", {}):
            return super().__getattr__(name)  # type: ignore[misc]
        with _LOADING:
            if name not in self.__dict__:
                loaded = self._deferred[name].load()
                if isinstance(loaded, torch.nn.Module):
                    loaded.eval().to(self.device)
                setattr(self, name, loaded)
        return self.__dict__[name]

    @classmethod
    def _get_signature_keys(cls, obj: Any) -> Any:
        """diffusers' own, by which it walks through the components: those that are not loaded are left out."""
        expected, optional = super()._get_signature_keys(obj)  # type: ignore[misc]
        absent = set(obj.deferred()) if isinstance(obj, DeferredComponentsMixin) else set()
        return sorted(set(expected) - absent), sorted({*optional, *absent})

    @property
    def components(self) -> dict[str, Any]:
        """All components; what is not loaded yet is loaded now."""
        if not self.__dict__.get("_only_loaded", False):
            for name in self.deferred():
                getattr(self, name)
        return super().components  # type: ignore[misc]

    @contextmanager
    def only_loaded(self) -> Iterator[None]:
        """Inside, ``components`` are those that are loaded."""
        self._only_loaded = True
        try:
            yield
        finally:
            self._only_loaded = False

    def has_component(self, name: str) -> bool:
        """Whether there is one of this name, loaded or not."""
        return name in self.deferred() or self.__dict__.get(name) is not None
