"""Change a live model: trace its coupled groups, cut channels, carry the optimizer, undo. In-place names end in _."""

from hqp_lightning.surgery.batchnorm import recalibrate_batchnorm_, tracking_batchnorm
from hqp_lightning.surgery.copying import duplicated
from hqp_lightning.surgery.cost import called_layers, layer_macs, layer_widths, per_channel
from hqp_lightning.surgery.cut import Cut, apply_cut_, slice_optimizers_
from hqp_lightning.surgery.fake_quantization import fake_quantized
from hqp_lightning.surgery.shadow import Shadow
from hqp_lightning.surgery.snapshot import Snapshot, restore_, take
from hqp_lightning.surgery.structure import Structure, apply_structure_, record

__all__ = [
    "Cut",
    "Shadow",
    "Snapshot",
    "Structure",
    "apply_cut_",
    "called_layers",
    "apply_structure_",
    "duplicated",
    "fake_quantized",
    "layer_macs",
    "layer_widths",
    "recalibrate_batchnorm_",
    "per_channel",
    "record",
    "restore_",
    "slice_optimizers_",
    "take",
    "tracking_batchnorm",
]
