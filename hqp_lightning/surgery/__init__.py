"""Change a live model: trace its coupled groups, cut channels, carry the optimizer, undo. In-place names end in _."""

from hqp_lightning.surgery.batchnorm import recalibrate_batchnorm_, tracking_batchnorm
from hqp_lightning.surgery.copying import duplicated
from hqp_lightning.surgery.cost import layer_macs
from hqp_lightning.surgery.cut import Cut, apply_cut_, slice_optimizers_
from hqp_lightning.surgery.fake_quantization import fake_quantized, learned
from hqp_lightning.surgery.shadow import Shadow
from hqp_lightning.surgery.snapshot import Snapshot, restore_, take
from hqp_lightning.surgery.structure import Structure, apply_structure_, record

__all__ = [
    "Cut",
    "Shadow",
    "Snapshot",
    "Structure",
    "apply_cut_",
    "apply_structure_",
    "duplicated",
    "fake_quantized",
    "layer_macs",
    "learned",
    "recalibrate_batchnorm_",
    "record",
    "restore_",
    "slice_optimizers_",
    "take",
    "tracking_batchnorm",
]
