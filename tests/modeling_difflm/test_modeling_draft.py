"""The column draft: its quantile functions, what it says of records, and what it writes."""

import numpy as np
import pytest
import torch

from difflm.modeling_draft import CHUNK, MISSING, UNKNOWN, ColumnDraft, _interpolate
from difflm.pipelines import cell_codes
from difflm.pipelines.cell_codes import CodedColumn
from difflm.training.draft_layout import new_draft
from difflm.training.policy import Policy


COLUMNS = (
    CodedColumn("size", "number", nullable=True),
    CodedColumn("colour", "choice", 3),
    CodedColumn("week", "number", nullable=True),
    CodedColumn("weekday", "choice", 7, True, ordered=True),
    CodedColumn("constant", "choice", 1),
)


def some_codes(count: int = 400) -> np.ndarray:
    random = np.random.default_rng(0)
    size = np.where(random.random(count) < 0.3, 0, random.integers(-500, 900, count))
    size[::9] = MISSING
    week = random.integers(100, 160, count)
    week[::4] = MISSING
    weekday = np.where(week == MISSING, MISSING, random.integers(0, 7, count))
    return np.stack([size, random.integers(0, 3, count), week, weekday, np.zeros(count, np.int64)], 1)


def small_draft(codes: np.ndarray | None = None, columns=COLUMNS, **options) -> ColumnDraft:
    torch.manual_seed(0)
    codes = some_codes() if codes is None else codes
    draft = new_draft(columns, codes, Policy(column_bins=16), **{"hidden_size": 16, "num_blocks": 1} | options)
    for head in draft.heads:  # an untrained head says nothing of the latent
        torch.nn.init.normal_(head.weight, std=0.5)
    return draft.eval()


def uniforms(count: int, draft: ColumnDraft, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2 * len(draft.columns), generator=generator, dtype=torch.float64)


def test_published_files_agree_on_what_a_gap_is():
    assert (MISSING, UNKNOWN) == (cell_codes.MISSING, cell_codes.UNKNOWN)


def test_blocks_have_the_sizes_and_the_noise_of_their_kinds():
    draft = small_draft(number_noise=0.1, choice_noise=0.4)
    # rank and gap; three choices; rank and gap; seven choices and a gap; nothing
    assert draft.latent_size == 2 + 2 + 2 + 4
    assert draft.latent_noise.tolist() == pytest.approx([0.1] * 2 + [0.4] * 2 + [0.1] * 2 + [0.4] * 4)


def test_latents_of_the_training_rows_have_mean_0_and_variance_1():
    codes = some_codes(4000)
    latents = small_draft(codes).encode(torch.from_numpy(codes), torch.Generator().manual_seed(0))
    present = torch.from_numpy(codes[:, 0] != MISSING)
    assert latents[present, 0].mean().abs() < 0.02
    assert latents[present, 0].std() == pytest.approx(1, abs=0.02)
    assert latents[:, 1:4].mean(0).abs().max() < 0.01
    assert (latents[:, 1:4].std(0) - 1).abs().max() < 0.02


@pytest.mark.parametrize("spread", [0.0, 0.25, 0.999999])
def test_a_value_that_is_told_exactly_comes_back_from_any_of_its_ranks(spread):
    codes = some_codes()
    draft = small_draft(codes)
    often = [code for code, count in zip(*np.unique(codes[:, 2], return_counts=True), strict=True) if count >= 5]
    own = torch.tensor([code for code in often if code != MISSING])
    low, high = draft._share_range(2, own)
    values, shares, _ = draft._quantiles(2)
    place = low + (high - low) * (1e-9 + spread * (1 - 2e-9))
    assert _interpolate(place, shares, values).round().long().tolist() == own.tolist()


def test_rare_values_are_not_told():
    rare = np.arange(0, 2000, 20)[:, None]
    draft = new_draft((CodedColumn("x", "number"),), rare)
    told = set(draft.knot_values.tolist())
    assert len(told & set(rare[1:-1, 0].tolist())) < 25
    assert {0, 1980} <= told


def test_nats_are_those_of_a_distribution_over_all_codes():
    codes = np.array([[0]] * 30 + [[3]] * 20 + [[7]] * 3 + [[8]] * 4 + [[12]] * 25 + [[MISSING]] * 10)
    draft = small_draft(codes, (CodedColumn("x", "number", nullable=True),))
    every = torch.tensor([[MISSING], *[[code] for code in range(13)]])
    for latent in torch.randn(5, draft.latent_size, generator=torch.Generator().manual_seed(1)):
        nats = draft.nats(latent.expand(len(every), -1), every)
        assert float(torch.exp(-nats.double()).sum()) == pytest.approx(1, abs=1e-4)


def test_what_is_written_has_the_chances_that_nats_says():
    codes = np.array([[0]] * 30 + [[3]] * 20 + [[7]] * 6 + [[8]] * 6 + [[12]] * 25 + [[MISSING]] * 10)
    draft = small_draft(codes, (CodedColumn("x", "number", nullable=True),), number_noise=0.8)
    latent = torch.tensor([[0.3, -0.2]])
    written = draft.write(latent.expand(20_000, -1), uniforms(20_000, draft))[:, 0]
    for code in (0, 3, 7, 8, 12, MISSING):
        chance = float(torch.exp(-draft.nats(latent, torch.tensor([[code]]))))
        assert float((written == code).double().mean()) == pytest.approx(chance, abs=0.012), code


def test_a_row_is_the_same_in_every_company():
    draft = small_draft()
    latents, numbers = torch.randn(3 * CHUNK + 5, draft.latent_size), uniforms(3 * CHUNK + 5, draft)
    whole = draft.write(latents, numbers)
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draft.write(latents[order], numbers[order]), whole[order])
    for row in (0, CHUNK - 1, CHUNK, len(latents) - 1):
        assert torch.equal(draft.write(latents[row : row + 1], numbers[row : row + 1])[0], whole[row])


def test_a_finer_part_has_a_gap_where_the_part_before_has_one():
    draft = small_draft()
    written = draft.write(torch.randn(500, draft.latent_size), uniforms(500, draft))
    assert torch.equal(written[:, 2] == MISSING, written[:, 3] == MISSING)
    assert 0 < int((written[:, 2] == MISSING).sum()) < 500


def test_limits_hold():
    draft = small_draft()
    latents, numbers = torch.randn(400, draft.latent_size), uniforms(400, draft)
    written = draft.write(
        latents,
        numbers,
        limits={0: (-20, 35), 1: torch.tensor([2, 0]), 2: ((121, 5), (122, 1)), 4: torch.tensor([0])},
    )
    assert int(written[:, 0].min()) >= -20 and int(written[:, 0].max()) <= 35
    assert set(written[:, 1].tolist()) == {0, 2}
    days = set(map(tuple, written[:, 2:4].tolist()))
    assert days <= {(121, 5), (121, 6), (122, 0), (122, 1)} and len(days) == 4
    listed = draft.write(latents, numbers, limits={0: torch.tensor([7, MISSING, 0])})
    assert set(listed[:, 0].tolist()) == {7, MISSING, 0}
    gaps = draft.write(latents, numbers, limits={0: torch.tensor([MISSING]), 2: ((100, 0), (159, 6), True)})
    assert set(gaps[:, 0].tolist()) == {MISSING}
    assert MISSING in gaps[:, 2].tolist()
    # Nothing was seen there: evenly.
    outside = draft.write(latents, numbers, limits={0: (5000, 5003)})
    assert set(outside[:, 0].tolist()) == {5000, 5001, 5002, 5003}


def test_given_cells_stay_and_are_seen_by_those_behind():
    draft = small_draft()
    with torch.no_grad():  # the colour says which weekday
        draft.token_inputs.weight.mul_(10)
    latents, numbers = torch.zeros(300, draft.latent_size), uniforms(300, draft)
    known = torch.full((300, len(COLUMNS)), UNKNOWN)
    known[:, 1] = torch.arange(300) % 3
    known[::2, 0] = 11
    known[1, 0] = MISSING
    written = draft.write(latents, numbers, given=known)
    assert torch.equal(written[:, 1], known[:, 1])
    assert set(written[::2, 0].tolist()) == {11}
    assert int(written[1, 0]) == MISSING
    shares = [torch.bincount(written[known[:, 1] == colour, 3].clamp(min=0), minlength=7) for colour in range(3)]
    assert not all(torch.equal(shares[0], other) for other in shares[1:])


def test_temperature_0_and_top_k_1_take_the_likeliest_token_and_top_p_cuts_the_tail():
    codes = np.arange(300)[:, None] % 5
    draft = small_draft(codes, (CodedColumn("x", "choice", 5),))
    latents, numbers = torch.randn(1, draft.latent_size).expand(500, -1), uniforms(500, draft)
    nats = torch.stack([draft.nats(latents[:1], torch.tensor([[code]]))[0] for code in range(5)])
    order = nats.argsort().tolist()
    chances = torch.exp(-nats[order]).tolist()
    assert set(draft.write(latents, numbers, temperature=0)[:, 0].tolist()) == {order[0]}
    assert set(draft.write(latents, numbers, top_k=1)[:, 0].tolist()) == {order[0]}
    assert set(draft.write(latents, numbers, top_k=3)[:, 0].tolist()) == set(order[:3])
    assert set(draft.write(latents, numbers, top_p=chances[0] + 0.5 * chances[1])[:, 0].tolist()) == set(order[:2])
    hot = draft.write(latents, numbers, temperature=50.0)[:, 0]
    assert float((hot == order[0]).double().mean()) == pytest.approx(0.2, abs=0.06)


def test_a_saved_draft_writes_the_same(tmp_path):
    draft = small_draft()
    draft.save_pretrained(tmp_path)
    loaded = ColumnDraft.from_pretrained(tmp_path)
    latents, numbers = torch.randn(100, draft.latent_size), uniforms(100, draft)
    assert torch.equal(loaded.write(latents, numbers), draft.write(latents, numbers))
    half = ColumnDraft.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, value in draft.state_dict().items():
        assert torch.equal(half.state_dict()[name], value), name


def test_a_gap_in_a_column_that_never_had_one_is_refused():
    draft = small_draft()
    codes = torch.from_numpy(some_codes(3)).clone()
    codes[0, 1] = MISSING
    with pytest.raises(ValueError, match="'colour' never had a gap"):
        draft.encode(codes)


def test_statistics_of_another_shape_or_out_of_order_are_refused():
    draft = small_draft()
    with pytest.raises(ValueError, match="knot_values must be int64 of shape"):
        draft.set_statistics(draft.knot_values[1:], draft.knot_ranks, draft.bin_knots, draft.token_counts)
    with pytest.raises(ValueError, match="ascend"):
        draft.set_statistics(draft.knot_values.flip(0), draft.knot_ranks, draft.bin_knots, draft.token_counts)
