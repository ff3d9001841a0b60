import numpy as np

from hqp_lightning.core.equalization import init, update


def test_a_nearly_dead_channel_is_counted_as_zero():
    """Weight decay drives channels to 1e-44; bins over such a range would overflow float32."""
    dead = update(init(2), np.array([[[1e-36, 0.0], [1.0, 0.5]]], np.float32))
    zero = update(init(2), np.array([[[0.0, 0.0], [1.0, 0.5]]], np.float32))
    for name in zero.__dataclass_fields__:
        np.testing.assert_allclose(getattr(dead, name), getattr(zero, name), atol=1e-30)
