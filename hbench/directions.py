"""Where delta_h comes from: directions as functions that a generation step adds to h_t."""

from torch import Tensor

from hbench.diffusion import DeltaH
from hbench.models.shift import ShiftBlock


def own(shift_block: ShiftBlock, k: Tensor, s: Tensor) -> DeltaH:
    """S f_k(h_t, t), the sample's own direction in Eq. (2), for k [B] and magnitudes s [B]."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        shift: Tensor = s[:, None, None, None] * shift_block(h, emb, k)
        return shift

    return delta_h


def together(*delta_hs: DeltaH) -> DeltaH:
    """Several edits at once: the sum over i of s_i f_k_i(h_t, t) (Fig. 8)."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        total = h.new_zeros(())
        for each in delta_hs:
            total = total + each(h, emb, t)
        return total

    return delta_h
