"""The comparison of semfm that lacks its experts: a ViT-MAE of micrographs, adapted in the same way."""

from typing import Any, Literal

from pydantic import Field

from restorers.semfm.restorer import Semfm

_ENCODER: Any = Field("stage1", description="pretrained model whose encoder is used; random: one that saw no image")


class VitMaeSem(Semfm):
    """semfm's model of stage 1, without experts, adapted exactly like semfm."""

    class Settings(Semfm.Settings):
        encoder: Literal["random", "stage1"] = _ENCODER
