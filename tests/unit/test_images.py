import torch

from hbench.core.images import tile

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_tiles_lie_row_by_row_and_places_may_stay_empty():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 3)
    pixels, lefts, tops = tile(images, 2, gap=1, edge=2, background=BLUE)
    assert pixels.shape == (2 + 2 + 1 + 2 + 2, 2 + 3 + 1 + 3 + 2, 3)
    assert (lefts, tops) == ([2, 6], [2, 5])
    for i, (top, left) in enumerate([(2, 2), (2, 6), (5, 2)]):
        assert (pixels[top : top + 2, left : left + 3] == i).all()  # grey in all channels
    assert (pixels.flatten(0, 1) == torch.tensor(BLUE)).all(1).sum() == 9 * 11 - 3 * 6
    hidden = tile(images, 2, rows=3, shown=torch.tensor([True, False, False]), background=BLUE).pixels
    assert (hidden.flatten(0, 1) != torch.tensor(BLUE)).any(1).sum() == 6
    assert len(hidden) == 3 * 2 + 2


def test_frames_and_breaks_belong_to_columns():
    images = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    pixels, lefts, _ = tile(images, 2, gap=2, edge=1, frames={1: RED}, frame_width=1, breaks=[1], break_width=5)
    assert lefts == [1, 1 + 4 + 2 + 5]
    red = (pixels == torch.tensor(RED)).all(2)
    assert red[0, 11:17].all()
    assert red.sum() == 2 * (6 * 6 - 4 * 4)
