"""The code that is published: complete, and fetched file by file, without detours."""

import ast
import re

from difflm.pipelines.checkpoint_code import installed_code


def test_only_the_pipeline_names_siblings_where_diffusers_looks_for_them():
    """It fetches what a file names, then what that names: without an end where two siblings name each other."""
    code = installed_code()
    followed = {
        name: {f"{module}.py" for module in re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)}
        for name, text in code.items()
    }
    siblings = followed.pop("pipeline_difflm.py")
    assert siblings == {name for name in code if "/" not in name} - {"pipeline_difflm.py"}
    assert not any(followed.values()), {name: named for name, named in followed.items() if named}
    for name, text in code.items():
        needed = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level}
        assert {f"{module}.py" for module in needed} <= siblings, name
