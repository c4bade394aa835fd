"""From a protocol and a data set, folder or phantom to the cases of a run."""

from pathlib import Path

from sembench.cases import fields, lines, pairs, tiles
from sembench.cases.case import CasePlan
from sembench.cases.lines import PHANTOM
from sembench.errors import InputError, UnavailableError
from sembench.protocol import Protocol
from sembench.registry import DATASETS, plugin, plugins, suggestion


def plan_cases(
    protocol: Protocol,
    data: str | None = None,
    *,
    limit: int | None = None,
    require_real: bool = False,
    crop_bottom: str = "auto",
) -> CasePlan:
    """The cases of a protocol on its own data set, on `phantom`, or on a folder of focused micrographs.

    crop_bottom: how the data bar of a folder's images is cut, `auto`, `0`, rows or a fraction.
    Where the protocol's own data cannot be had the phantom takes its place, with a notice.
    Raises UnavailableError where `require_real` forbids that, InputError for an unknown name.
    """
    name = data or protocol.data.set
    if name == PHANTOM:
        if require_real:
            raise UnavailableError("--require-real refuses --data phantom: leave one of them out")
        return _stand_in(protocol, limit)
    known = plugins(DATASETS)
    if name not in known:
        if Path(name).is_dir():
            if protocol.scope == "set":
                raise InputError(f"protocol {protocol.name!r} takes no folder: its tiles are frozen")
            if protocol.data.pairs:
                return pairs.plan_pair_folder(protocol, Path(name), limit, crop_bottom)
            if protocol.data.scenes:
                raise InputError(f"protocol {protocol.name!r} takes no folder: its scenes are frozen; see `measure`")
            return fields.plan_folder(protocol, Path(name), limit, crop_bottom)
        raise InputError(f"{name}: neither a folder nor a data set: {suggestion(name, [*known, PHANTOM])}")
    if name not in (protocol.data.set, *(protocol.data.also or ())):
        raise InputError(
            f"protocol {protocol.name!r} has no fields for data set {name!r}: "
            f"give --data {protocol.data.set}{', phantom or a folder' if protocol.scope == 'case' else ' or phantom'}"
        )
    try:
        dataset = plugin(DATASETS, name).load()()
        if protocol.data.pairs:
            return pairs.plan_pairs(protocol, dataset, limit)
        if protocol.scope == "set":
            return tiles.plan_tiles(protocol, dataset, limit)
        plan_set = lines.plan_lines if protocol.data.scenes == "lines" else fields.plan_fields
        return plan_set(protocol, dataset, limit)
    except UnavailableError as error:
        if require_real or protocol.data.fallback is None:
            raise
        plan = _stand_in(protocol, limit)
        instead = "running on the phantom scenes alone" if protocol.data.scenes else "running on the phantom instead"
        notice = f"the real images of {name} cannot be had ({error}); {instead}"
        return CasePlan(plan.data, plan.digest, plan.specs, (notice,))


def _stand_in(protocol: Protocol, limit: int | None) -> CasePlan:
    if protocol.scope == "set":
        return tiles.plan_scene_tiles(protocol, limit)
    if protocol.data.pairs:
        return pairs.plan_stand_in(protocol, limit)
    plan = lines.plan_scenes if protocol.data.scenes == "lines" else fields.plan_phantom
    return plan(protocol, limit)
