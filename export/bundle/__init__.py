"""A bundle on disk: its files, its manifest, and how far its pictures may be from the run's."""

from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from ganfast.export import of_old_module

        return of_old_module(__name__, name)
