import inspect
import re

import pytest
import torch

from hbench.core import seeds

STREAMS = [
    ("initial_weights", (5,), 6315739163131927091),
    ("starting_noise", (5, 3), 4032576983210384345),
    ("shift_of_pair", (5, 3), 235725461354084615),
    ("discovery_step", (5, 3), 3573377170641978999),
    ("pretraining_step", (5, 3), 4032576983210384345),
    ("dropout", (5, 3, 2), 3694367377014336078),
    ("flips", (5, 3), 3886028312477217549),
    ("pool", (5,), 6315739163131927091),
    ("mean_samples", (5, 3), 4032576983210384345),
    ("controls", (5, 3), 4032576983210384345),
    ("untrained_blocks", (5, 3), 3886028312477217549),
    ("properties_bootstrap", (5, 3), 4032576983210384345),
    ("probe", (5,), 5),
    ("study_design", (5,), 5),
    ("study_bootstrap", (5,), 5),
    ("found", (5,), 2348062767864958453),
    ("found_on", (5,), 4890756140205167577),
    ("gradient_batch", (5, 3), 3910967395445202004),
    ("balance", (5,), 8867950898784400070),
    ("real_halves", (), 0),
]
"""Each stream, and its seed for some arguments: another number would change every result made with it."""


@pytest.mark.parametrize(("name", "arguments", "seed"), STREAMS)
def test_a_stream_keeps_its_numbers(name, arguments, seed):
    assert getattr(seeds, name)(*arguments) == seed


def test_every_stream_is_tested_and_in_the_table():
    public = {name for name, _ in inspect.getmembers(seeds, inspect.isfunction) if not name.startswith("_")}
    named = [name for name, *_ in STREAMS]
    assert public - {"draw_x_T"} == set(named)
    assert re.findall(r"^\| ``(\w+)``", seeds.__doc__, re.MULTILINE) == named


def test_streams_of_one_seed_differ_where_they_meet():
    """What a discovery draws, what measures it draws, and what both halves of a pretraining draw."""
    steps = {seeds.discovery_step(0, step) for step in range(300)}
    noise = {seeds.starting_noise(0, i) for i in range(300)}
    shifts = {seeds.shift_of_pair(0, i) for i in range(300)}
    pooled = {seeds.starting_noise(seeds.pool(0), i) for i in range(300)}
    averaged = {seeds.starting_noise(seeds.mean_samples(0, 300), i) for i in range(300)}
    assert len(steps | noise | shifts | pooled | averaged) == 5 * 300
    flips = {seeds.flips(0, step) for step in range(300)}
    assert len({seeds.dropout(0, step, rank) for step in range(100) for rank in range(3)} | noise | flips) == 900
    assert seeds.initial_weights(0) not in steps | pooled


def test_noise_is_drawn_image_by_image():
    found = seeds.draw_x_T(7, 2, 1, (1, 2, 2))
    generator = torch.Generator().manual_seed(seeds.starting_noise(7, 2))
    assert torch.equal(found[0], torch.empty(1, 2, 2).normal_(generator=generator))
