"""The portable layout of a saved pipeline, on a local folder."""

from difflm import DiffLMPipeline


def test_hub_smoke(saved, expected):
    print(sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*")))
    print((saved / "model_index.json").read_text()[:3000])
    pipe = DiffLMPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(4, seed=7).records == expected
