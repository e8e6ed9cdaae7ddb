"""Two revisions of a repository, loaded with their code into one process, do not know of each other."""

import json


ALTERNATELY = """
import json, threading
from diffusers import DiffusionPipeline

def load(revision):
    pipe = DiffusionPipeline.from_pretrained("user/toys", revision=revision, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe

first = load("{first}")
alone = first(4, seed=7).records
second = load("{second}")
assert type(first) is not type(second)
assert (type(first).revision, type(second).revision) == (1, 2)
found = [pipe(4, seed=7).records for pipe in (first, second, first, second)]
slow = [pipe(4, seed=7, fast=False).records for pipe in (second, first)]
at_once = {{}}
threads = [
    threading.Thread(target=lambda pipe=pipe, name=name: at_once.update({{name: pipe(4, seed=7).records}}))
    for name, pipe in (("first", first), ("second", second), ("first again", first))
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("RECORDS", json.dumps([alone, *found, *slow, *at_once.values()]))
"""


def test_hub_two_revisions_with_their_code_sample_alternately_and_at_once(
    hub, run_python, saved, expected, python_without_difflm
):
    files = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    code = files["pipeline_difflm.py"].decode()
    revisions = [
        files | {"pipeline_difflm.py": f"{code}\n\nDiffLMPipeline.revision = {number}\n".encode()} for number in (1, 2)
    ]
    # Every file of code differs, as in a later version.
    revisions[1] |= {
        name: content + b"\n# a later version\n"
        for name, content in revisions[1].items()
        if name.endswith(".py")
    }
    repo = hub.add("user/toys", revisions[0])
    first = repo.refs["main"]
    repo.commit("main", revisions[1], "a later version")
    code = ALTERNATELY.format(first=first, second=repo.refs["main"])
    done = run_python(code, hub, python=python_without_difflm)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORDS ")]
    assert done.returncode == 0 and lines, done.stderr[-4000:]
    found = json.loads(lines[-1].removeprefix("RECORDS "))
    assert len(found) == 10 and all(records == expected for records in found)
    assert "fast" not in done.stderr.lower(), done.stderr[-2000:]
