"""Old names of `ganfast.export.<module>`: importable for one version more, with a warning."""

import subprocess
import sys

import pytest

RUN = [sys.executable, "-W", "always::DeprecationWarning", "-c"]


@pytest.mark.parametrize(
    ("statement", "same"),
    [
        ("import ganfast.export.sampler as old", "import ganfast.export.drawing.sampler as new"),
        ("from ganfast.export import vendor as old", "import ganfast.export.engines.vendor as new"),
        ("import ganfast.export.latents as old", "import ganfast.latents as new"),
        ("import ganfast.export.backend as old", "import ganfast.export.drawing.lanes as new"),
        (
            "from ganfast.export.manifest import Manifest as old",
            "from ganfast.export.bundle.manifest import Manifest as new",
        ),
        (
            "from ganfast.export.bundle import open_bundle as old",
            "from ganfast.export.bundle.bundle import open_bundle as new",
        ),
        (
            "import ganfast.export.bundle as b; old = b.Bundle",
            "from ganfast.export.bundle.bundle import Bundle as new",
        ),
        (
            "from ganfast.export.engines import Gpu as old",
            "from ganfast.export.engines.engines import Gpu as new",
        ),
    ],
)
def test_an_old_name_is_the_same_thing_and_says_so(statement, same):
    for code in (f"{statement}; {same}", f"{same}; {statement}"):  # whichever comes first
        code += (
            "; assert old is new; assert getattr(new, '__spec__', None) is None "
            "or new.__spec__.name == new.__name__"
        )
        done = subprocess.run([*RUN, code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "<string>:1: DeprecationWarning" in done.stderr, "the warning points at the import"


def test_new_names_warn_of_nothing_and_unknown_ones_are_unknown():
    code = (
        "from ganfast.export import load_sampler\n"
        "from ganfast.export.bundle import bundle, manifest\n"
        "from ganfast.export.engines import vendor\n"
        "try:\n    import ganfast.export.nowhere\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
        "try:\n    from ganfast.export.bundle import nothing\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([*RUN, code], capture_output=True, text=True, check=True)
    assert "DeprecationWarning" not in done.stderr
    assert "No module named 'ganfast.export.nowhere'" in done.stdout
    assert "cannot import name 'nothing'" in done.stdout
