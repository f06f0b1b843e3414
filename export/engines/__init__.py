"""Engines built from a bundle's graph, and the libraries that build and run them."""

from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from ganfast.export import of_old_module

        return of_old_module(__name__, name)
